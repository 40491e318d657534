"""Warm start: which variables begin with another model's values, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipelines import exported_digits, trained_digits
from served_pipelines import asked, held_out, request_about
from slipway_command import REPOSITORY, Slipway
from test_training import arguments

from configs.loading.errors import ConfigError
from configs.loading.pipelines import load_pipeline
from configs.schema.training import WarmStartConfig
from tasks.core.artifacts import Checkpoint
from tasks.core.errors import ModelError
from tasks.estimators.warm_start import Form, Plan, plan
from tasks.in_tensorflow import train as program

STORED = {
    "dense/kernel": Form((4, 8), "float32"),
    "dense/kernel/Adam": Form((4, 8), "float32"),
    "logits/kernel": Form((8, 3), "float32"),
    "global_step": Form((), "int64"),
}
MODEL = {**STORED, "block/kernel": Form((8, 8), "float32")}
OPTIMIZERS = ("dense/kernel/Adam", "global_step")


def planned(**settings: Any) -> Plan:
    config = WarmStartConfig.model_validate({"from": "serving", **settings})
    return plan(config, STORED, MODEL, OPTIMIZERS)


class TestPlan:
    """What is restored, renamed and initialised."""

    def test_by_default_all_that_is_there_but_the_optimizers(self) -> None:
        """global_step too is the new training's own."""
        found = planned()
        assert found.restored == {"dense/kernel": "dense/kernel", "logits/kernel": "logits/kernel"}
        assert found.initialised == ("block/kernel",)

    def test_include_and_exclude_are_regular_expressions(self) -> None:
        """What is excluded, or not included, is initialised."""
        assert set(planned(include=["^dense/", "logits"], exclude=[]).restored) == {
            "dense/kernel",
            "logits/kernel",
        }
        assert set(planned(exclude=["^logits"]).restored) == {"dense/kernel"}
        assert planned(include=["^dense/"]).initialised == ("logits/kernel", "block/kernel")

    def test_an_optimizers_variable_is_restored_where_it_is_named(self) -> None:
        """By its very name; a pattern that happens to match it does not restore it."""
        assert "dense/kernel/Adam" not in planned(include=["."]).restored
        assert set(planned(include=["dense/kernel/Adam"]).restored) == {"dense/kernel/Adam"}

    def test_renamed_ones_are_told(self) -> None:
        """The plan in words: restored, renamed, initialised."""
        stored = {"stem/kernel" if name == "dense/kernel" else name: form for name, form in STORED.items()}
        config = WarmStartConfig.model_validate(
            {"from": "serving", "rename": {"stem/kernel": "dense/kernel"}}
        )
        found = plan(config, stored, MODEL, OPTIMIZERS)
        assert found.told("version 7") == [
            "warm start from version 7: restored logits/kernel",
            "warm start: renamed stem/kernel -> dense/kernel",
            "warm start: initialised block/kernel",
        ]
        assert found.summary("version 7") == "2 of 3 variables warm-started from version 7"

    @pytest.mark.parametrize(
        ("settings", "message", "hint"),
        [
            ({"rename": {"dense/kernels": "dense/kernel"}},
             "rename: the checkpoint has no variable 'dense/kernels'", "did you mean 'dense/kernel'"),
            ({"rename": {"dense/kernel": "hidden"}}, "rename: the model has no variable 'hidden'", "block/"),
            ({"include": ["^block"]}, "include: '^block' matches no variable that is in model and checkpoint",
             "in the model: block/kernel, dense/kernel"),
            ({"exclude": ["^blok"]}, "exclude: '^blok' matches no variable", "in the checkpoint: dense"),
            ({"exclude": ["kernel"]}, "no variable of the model would be restored", "in the model: block"),
            ({"rename": {"logits/kernel": "block/kernel"}},
             "logits/kernel is float32[8,3] in the checkpoint, block/kernel is float32[8,8] in the model",
             "exclude"),
        ],
    )  # fmt: skip
    def test_what_matches_nothing_or_does_not_fit(
        self, settings: Mapping[str, Any], message: str, hint: str
    ) -> None:
        """Both sides are shown."""
        with pytest.raises(ModelError, match=re.escape(message)) as caught:
            planned(**settings)
        assert hint in caught.value.hint


def test_a_pattern_that_is_no_regular_expression_is_told_with_its_key(tmp_path: Path) -> None:
    """When the YAML is read; unknown keys are told by the name that a YAML has."""
    digits = REPOSITORY / "configs" / "digits"
    broken = {"training.warm_start": {"from": "serving", "include": ["("]}}
    with pytest.raises(ConfigError, match="not a regular expression"):
        load_pipeline(digits, broken)
    with pytest.raises(ConfigError, match="did you mean 'from'"):
        load_pipeline(digits, {"training.warm_start": {"form": "serving"}})


class TestTrained:
    """Real training that begins with the digits' values; a learning rate of zero keeps them."""

    def _trained(self, folder: Path, told: list[str] | None = None, **settings: Any) -> Checkpoint:
        settings = {"model__params__optimizer": {"name": "SGD", "learning_rate": 0.0}, **settings}
        _, given = arguments(folder, training__max_steps=2, **settings)
        lines = told if told is not None else []
        return program.run(lambda progress: lines.append(str(progress.get("message", ""))), **given)

    @staticmethod
    def _kernel(checkpoint: Path, layer: str) -> Any:
        import tensorflow as tf

        return tf.train.load_variable(str(checkpoint), f"dnn/{layer}/kernel")

    @pytest.mark.parametrize("kind", ["prefix", "model_dir", "SavedModel"])
    def test_from_each_kind_of_source(self, tmp_path: Path, kind: str) -> None:
        """A canned Estimator begins with the values of a checkpoint, a model_dir or a SavedModel."""
        digits = trained_digits()
        source = {
            "prefix": digits.checkpoint.prefix,
            "model_dir": digits.run.model_dir,
            "SavedModel": exported_digits().path if kind == "SavedModel" else Path(),
        }[kind]
        warm = {"from": str(source), "exclude": ["^dnn/logits/"]}
        told: list[str] = []
        checkpoint = self._trained(tmp_path, told, training__warm_start=warm)
        same = [
            np.array_equal(
                self._kernel(checkpoint.prefix, name), self._kernel(digits.checkpoint.prefix, name)
            )
            for name in ("hiddenlayer_0", "hiddenlayer_1", "logits")
        ]
        assert same == [True, True, False]
        assert checkpoint.global_step == 2
        assert f"4 of 6 variables warm-started from {source}" in checkpoint.summary()
        assert "warm start: initialised dnn/logits/kernel, dnn/logits/bias" in told

    def test_a_resumed_run_keeps_what_it_has(self, tmp_path: Path) -> None:
        """Where there is a checkpoint, the warm start is left out, and that is told."""
        warm = {"from": str(trained_digits().checkpoint.prefix)}
        first = self._trained(tmp_path)
        told: list[str] = []
        second = self._trained(tmp_path, told, training__warm_start=warm)
        assert told[0] == "no warm start: training goes on from the checkpoint of step 2"
        assert second.prefix == first.prefix

    def test_shapes_that_differ_are_told_before_a_step_is_trained(self, tmp_path: Path) -> None:
        """Each with both sides."""
        warm = {"from": str(trained_digits().checkpoint.prefix)}
        with pytest.raises(ModelError, match="shapes or dtypes differ") as caught:
            self._trained(tmp_path, training__warm_start=warm, model__params__hidden_units=[64, 16])
        assert (
            "dnn/logits/kernel is float32[32,10] in the checkpoint, dnn/logits/kernel is float32[16,10] in "
            "the model" in caught.value.message
        )
        assert not list(tmp_path.glob("r1/checkpoints/model.ckpt*"))

    def test_a_path_that_is_no_checkpoint(self, tmp_path: Path) -> None:
        """The key and the path are named."""
        with pytest.raises(ModelError, match=r"training\.warm_start\.from: .*/nothing is no checkpoint"):
            self._trained(tmp_path, training__warm_start={"from": str(tmp_path / "nothing")})


def test_the_example_begins_with_the_served_version(slipway: Slipway) -> None:
    """The first night nothing is served; the next goes on from it, a layer renamed and one new; asked."""
    example = REPOSITORY / "configs" / "warm_start"
    old = slipway.run(example, "model.params.first_layer=dense", "model.params.blocks=0")
    assert old.exit_code == 0, old.output
    new = slipway.run(example, "training.max_steps=20")
    assert new.exit_code == 0, new.output
    proved = {stage["name"]: stage["summary"] for stage in new.verdict["stages"]}["train"]
    assert f"4 of 6 variables warm-started from version {old.verdict['version']}" in proved
    assert new.verdict["metrics"]["accuracy"] >= 0.85
    log = (slipway.home / "runs" / "warm-start" / new.verdict["run_id"] / "logs" / "train.log").read_text()
    assert "warm start: renamed dense/kernel -> stem/kernel, dense/bias -> stem/bias" in log
    wines = held_out(new, slipway)
    with asked(new) as stub:
        response = stub.Classify(request_about("classify", new, "", wines), timeout=30)
    likely = [np.argmax([c.score for c in row.classes]) for row in response.result.classifications]
    true = [wine.features.feature["cultivar"].int64_list.value[0] for wine in wines]
    assert np.mean(np.equal(likely, true)) >= 0.85
