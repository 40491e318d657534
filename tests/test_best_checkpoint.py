"""The best checkpoint by an eval metric, and `export.checkpoint`, which says what is shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pipelines import trained_digits
from slipway_command import DIGITS, Slipway

from configs.loading.errors import ConfigError
from configs.loading.pipelines import load_pipeline
from configs.schema.training import BestCheckpointConfig
from tasks.core.errors import ModelError
from tasks.estimators import checkpoint_choice
from tasks.estimators.best_checkpoints import KeepBest, read


def _saved(model_dir: Path, step: int) -> None:
    """A checkpoint that nobody reads."""
    for suffix in ("index", "data-00000-of-00001", "meta"):
        (model_dir / f"model.ckpt-{step}.{suffix}").write_text(f"{step}")


class Evaluations:
    """Evaluates checkpoints to values that were decided before."""

    def __init__(self, model_dir: Path, goal: str, *values: float) -> None:
        self.values, self.evaluated = iter(values), list[int]()
        self.stopping = False
        self.keeper = self.new_keeper(model_dir, goal)
        self._model_dir = model_dir

    def new_keeper(self, model_dir: Path, goal: str, first_step: int = 0) -> KeepBest:
        wanted = BestCheckpointConfig.model_validate({"metric": "accuracy", "goal": goal})
        return KeepBest(wanted, model_dir, first_step, self._evaluate, lambda: self.stopping)

    def _evaluate(self, prefix: Path) -> dict[str, Any]:
        self.evaluated.append(int(prefix.name.rpartition("-")[2]))
        return {"accuracy": next(self.values), "loss": 1.0}

    def save(self, *steps: int) -> None:
        for step in steps:
            _saved(self._model_dir, step)
            self.keeper.after_save(None, step)


def _best_files(model_dir: Path) -> set[str]:
    return {file.name for file in (model_dir / "best").iterdir()}


class TestKept:
    """Which checkpoint is in `best`."""

    @pytest.mark.parametrize(("goal", "best"), [("max", 20), ("min", 30)])
    def test_the_best_of_all_and_only_it(self, tmp_path: Path, goal: str, best: int) -> None:
        """By the largest or the smallest value; TensorFlow's own tools find it there."""
        import tensorflow as tf

        evaluations = Evaluations(tmp_path, goal, 0.5, 0.9, 0.4, 0.9)
        evaluations.save(10, 20, 30, 40)
        assert read(tmp_path).step == best  # type: ignore[union-attr]
        assert _best_files(tmp_path) == {
            "best.json", "checkpoint",
            *(f"model.ckpt-{best}.{suffix}" for suffix in ("index", "data-00000-of-00001", "meta")),
        }  # fmt: skip
        assert tf.train.latest_checkpoint(str(tmp_path / "best")) == str(tmp_path / f"best/model.ckpt-{best}")

    def test_it_stays_when_training_is_resumed(self, tmp_path: Path) -> None:
        """What was evaluated is not evaluated again; a worse one does not replace it."""
        evaluations = Evaluations(tmp_path, "max", 0.9, 0.5, 0.7)
        evaluations.save(10, 20)
        evaluations.keeper = evaluations.new_keeper(tmp_path, "max", first_step=20)
        evaluations.save(20, 30)
        assert evaluations.evaluated == [10, 20, 30]
        assert read(tmp_path).step == 10  # type: ignore[union-attr]

    def test_nan_is_never_the_best(self, tmp_path: Path) -> None:
        """Unless there is nothing else."""
        evaluations = Evaluations(tmp_path, "max", float("nan"), 0.1, float("nan"))
        evaluations.save(10, 20, 30)
        assert read(tmp_path).step == 20  # type: ignore[union-attr]

    def test_a_run_that_is_told_to_stop_does_not_evaluate(self, tmp_path: Path) -> None:
        """The checkpoint is saved; there are seconds left before SIGKILL. It is evaluated when resumed."""
        evaluations = Evaluations(tmp_path, "max", 0.9)
        evaluations.stopping = True
        evaluations.save(10)
        assert evaluations.evaluated == []

    def test_a_metric_that_is_not_reported(self, tmp_path: Path) -> None:
        """Those that are, are listed."""
        wanted = BestCheckpointConfig(metric="f1", goal="max")
        keeper = KeepBest(wanted, tmp_path, 0, lambda _: {"accuracy": 1.0, "loss": 0.1}, lambda: False)
        with pytest.raises(ModelError, match="the model reports no 'f1'") as caught:
            keeper.after_save(None, 10)
        assert caught.value.hint == "metrics that it reports: accuracy, loss"


def test_best_needs_a_metric() -> None:
    """`export.checkpoint: best` alone is refused when the YAML is read."""
    with pytest.raises(ConfigError, match=r"export\.checkpoint best needs training\.best_checkpoint"):
        load_pipeline(DIGITS, {"export.checkpoint": "best"})


class TestChosen:
    """`export.checkpoint`."""

    @pytest.fixture
    def model_dir(self) -> Path:
        """Checkpoints of real training."""
        return trained_digits().run.model_dir

    def test_a_step_and_a_path(self, model_dir: Path) -> None:
        """A step of this run; or any checkpoint, relative to the YAML."""
        newest = model_dir / "model.ckpt-300"
        chosen, _ = checkpoint_choice.choose(200, model_dir, model_dir, newest)
        assert chosen == model_dir / "model.ckpt-200"
        chosen, reason = checkpoint_choice.choose("model.ckpt-200", model_dir, model_dir, newest)
        assert (chosen, reason) == (model_dir / "model.ckpt-200", "by export.checkpoint: model.ckpt-200")

    def test_a_step_that_is_not_there_lists_those_that_are(self, model_dir: Path) -> None:
        """And says which keys decide what stays."""
        with pytest.raises(ModelError, match="there is no checkpoint of step 250") as caught:
            checkpoint_choice.choose(250, model_dir, model_dir, model_dir / "model.ckpt-300")
        assert "200, 300; training.keep_checkpoint_max" in caught.value.hint


def test_the_best_of_real_training_is_evaluated_and_exported(slipway: Slipway) -> None:
    """Whole chain: the gate judges the best checkpoint; keep_checkpoint_max has removed the original."""
    done = slipway.run(
        DIGITS, "training.max_steps=300", "training.save_checkpoints_steps=50",
        "training.keep_checkpoint_max=1", "training.best_checkpoint={metric: average_loss, goal: max}",
        "export.checkpoint=best", "evaluation.thresholds={}", flow="retrain",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    folder = slipway.home / "runs" / "digits" / done.verdict["run_id"] / "checkpoints"
    best = json.loads((folder / "best" / "best.json").read_text())
    assert (best["metric"], best["evaluated_step"]) == ("average_loss", 300)
    assert best["step"] < 300
    assert [file.name for file in folder.glob("model.ckpt-*.index")] == ["model.ckpt-300.index"]
    assert done.verdict["metrics"]["global_step"] == best["step"]
    assert done.verdict["metrics"]["average_loss"] == pytest.approx(best["value"])
    proved = {stage["name"]: stage["summary"] for stage in done.verdict["stages"]}["train"]
    assert f"checkpoint at step {best['step']}" in proved
    assert "the best by average_loss" in proved
