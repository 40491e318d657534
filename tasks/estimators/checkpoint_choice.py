"""Which checkpoint is evaluated and exported: `export.checkpoint`."""

from __future__ import annotations

from pathlib import Path

from tasks.core.errors import ModelError
from tasks.estimators import best_checkpoints
from tasks.estimators.best_checkpoints import Best
from tasks.estimators.checkpoints import prefix_at, saved


def choose(wanted: str | int, model_dir: Path, source: Path, newest: Path) -> tuple[Path, str]:
    """Return the checkpoint that `export.checkpoint` means, and in words why it is that one.

    `source` is the folder that a path is relative to. Raises ModelError where it is not there, with
    what is.
    """
    if wanted == "latest":
        return newest, ""
    best = best_checkpoints.read(model_dir)
    if wanted == "best":
        if best is None:
            raise ModelError(
                "export.checkpoint is best, and no checkpoint was evaluated", "train for more steps"
            )
        return best_checkpoints.prefix(model_dir, best), f"the best by {best.metric}: {best.value:.4g}"
    if isinstance(wanted, int):
        return _at_step(wanted, model_dir, best), "by export.checkpoint"
    path = source / Path(wanted).expanduser()
    return prefix_at(path, "export.checkpoint"), f"by export.checkpoint: {wanted}"


def _at_step(step: int, model_dir: Path, best: Best | None) -> Path:
    found = saved(model_dir)
    if best is not None:
        found.setdefault(best.step, best_checkpoints.prefix(model_dir, best))
    if step not in found:
        raise ModelError(
            f"export.checkpoint: there is no checkpoint of step {step} in {model_dir}",
            f"there are those of {', '.join(map(str, sorted(found)))}; "
            "training.keep_checkpoint_max and save_checkpoints_steps say which stay",
        )
    return found[step]
