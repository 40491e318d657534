"""The best checkpoint by an eval metric, kept in `<model_dir>/best` while training goes on."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from configs.schema.training import BestCheckpointConfig
from tasks.core import durable_files
from tasks.core.errors import ModelError

_RECORD = "best.json"


@dataclass(frozen=True)
class Best:
    """What `best.json` says: written last, it makes the files that it names the best checkpoint."""

    step: int
    metric: str
    value: float
    evaluated_step: int
    """The last step that was looked at, better or not."""


def folder(model_dir: Path) -> Path:
    """Return the folder of the best checkpoint; keep_checkpoint_max does not reach it."""
    return model_dir / "best"


def prefix(model_dir: Path, best: Best) -> Path:
    """Return the best checkpoint, as `tf.train.Saver` takes it."""
    return folder(model_dir) / f"model.ckpt-{best.step}"


def read(model_dir: Path) -> Best | None:
    """Return what is known of the best checkpoint; None where none was evaluated."""
    try:
        return Best(**json.loads((folder(model_dir) / _RECORD).read_text()))
    except FileNotFoundError:
        return None


class KeepBest(tf.estimator.CheckpointSaverListener):  # type: ignore[misc]
    """Evaluates each checkpoint as it is saved, in the trainer, as `train_and_evaluate` does."""

    def __init__(
        self, wanted: BestCheckpointConfig, model_dir: Path, first_step: int,
        evaluate: Callable[[Path], dict[str, Any]], is_stopping: Callable[[], bool],
    ) -> None:  # fmt: skip
        """`evaluate` returns a checkpoint's metrics; while `is_stopping` there is no time for it."""
        self._wanted, self._model_dir = wanted, model_dir
        self._evaluate, self._is_stopping = evaluate, is_stopping
        self._best = read(model_dir)
        looked_at = self._best.evaluated_step if self._best else 0
        self._seen = min(looked_at, first_step)

    def after_save(self, _session: Any, global_step_value: int) -> None:
        """Evaluate it, unless it was before; keep it where it is the best so far."""
        step = int(global_step_value)
        if step <= self._seen or self._is_stopping():
            return
        value = self._metric(self._model_dir / f"model.ckpt-{step}")
        self._seen = step
        if not self._is_better(value) and self._best is not None:
            self._write(Best(**{**asdict(self._best), "evaluated_step": step}))
        else:
            self._keep(Best(step, self._wanted.metric, value, step))

    def _metric(self, checkpoint: Path) -> float:
        metrics = self._evaluate(checkpoint)
        if self._wanted.metric not in metrics:
            message = f"training.best_checkpoint.metric: the model reports no {self._wanted.metric!r}"
            raise ModelError(message, f"metrics that it reports: {', '.join(sorted(metrics))}")
        return float(metrics[self._wanted.metric])

    def _is_better(self, value: float) -> bool:
        if self._best is None or math.isnan(self._best.value):
            return True
        return value > self._best.value if self._wanted.goal == "max" else value < self._best.value

    def _keep(self, best: Best) -> None:
        kept = folder(self._model_dir)
        kept.mkdir(exist_ok=True)
        name = f"model.ckpt-{best.step}"
        for file in self._model_dir.glob(f"{name}.*"):
            durable_files.sync(Path(shutil.copyfile(file, kept / file.name)))
        tf.compat.v1.train.update_checkpoint_state(str(kept), name, [name])
        self._write(best)
        for file in kept.glob("model.ckpt-*"):
            if file.with_suffix("").name != name:
                file.unlink()

    def _write(self, best: Best) -> None:
        durable_files.write(folder(self._model_dir) / _RECORD, json.dumps(asdict(best)).encode())
        self._best = best
