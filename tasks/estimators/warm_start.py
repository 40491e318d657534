"""Warm start: variables that begin with another model's values, in place of their initializers'."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from configs.schema.training import TrainingConfig, WarmStartConfig
from tasks.core import durable_files
from tasks.core.artifacts import Run
from tasks.core.errors import ModelError
from tasks.estimators.checkpoints import damage, keys, prefix_at

_KEY = "training.warm_start"
_RECORD = "warm_start.json"
_GLOBAL_STEP = tf.compat.v1.GraphKeys.GLOBAL_STEP
_NAMES_SHOWN = 20


@dataclass(frozen=True)
class Form:
    """A variable's shape and dtype."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Plan:
    """Which variable of the model begins with what."""

    restored: Mapping[str, str]
    """Name in the model to name in the checkpoint."""
    initialised: tuple[str, ...]
    """Names in the model of those that begin with their initializers; the optimizer's own left out."""

    def told(self, origin: str) -> list[str]:
        """Return a description in lines: what is restored, under which names, and what is initialised."""
        same = [name for name, stored in self.restored.items() if name == stored]
        renamed = [f"{stored} -> {name}" for name, stored in self.restored.items() if name != stored]
        return [
            f"warm start from {origin}: restored {', '.join(same) or 'none under its own name'}",
            f"warm start: renamed {', '.join(renamed) or 'none'}",
            f"warm start: initialised {', '.join(self.initialised) or 'none'}",
        ]

    def summary(self, origin: str) -> str:
        """Return a description that fits into a sentence."""
        restored, of_all = len(self.restored), len(self.restored) + len(self.initialised)
        return f"{restored} of {of_all} variables warm-started from {origin}"


def plan(
    config: WarmStartConfig, stored: Mapping[str, Form], model: Mapping[str, Form], optimizers: Iterable[str]
) -> Plan:
    """Decide which variable of `model` begins with which of the `stored` ones.

    `optimizers` names those of the model that are the optimizer's (global_step too). Raises ModelError,
    showing both sides, where a name or a pattern matches nothing, or shapes or dtypes differ.
    """
    own = set(optimizers)
    named = {new: old for old, new in config.rename.items()}
    _require_known(config, stored, model)
    restored = {
        name: named.get(name, name)
        for name in model
        if name in named
        or (name in stored and _is_wanted(name, config, name in own))
    }  # fmt: skip
    _require_use_of_patterns(config, stored, model, restored)
    _require_same_forms(restored, stored, model)
    return Plan(restored, tuple(name for name in model if name not in restored and name not in own))


def _is_wanted(name: str, config: WarmStartConfig, is_optimizers: bool) -> bool:
    if is_optimizers:
        return name in config.include
    included = not config.include or any(re.search(pattern, name) for pattern in config.include)
    return included and not any(re.search(pattern, name) for pattern in config.exclude)


def _require_known(config: WarmStartConfig, stored: Mapping[str, Form], model: Mapping[str, Form]) -> None:
    for old, new in config.rename.items():
        if old not in stored:
            raise ModelError(f"{_KEY}.rename: the checkpoint has no variable {old!r}", _near(old, stored))
        if new not in model:
            raise ModelError(f"{_KEY}.rename: the model has no variable {new!r}", _near(new, model))


def _require_use_of_patterns(
    config: WarmStartConfig,
    stored: Mapping[str, Form],
    model: Mapping[str, Form],
    restored: Mapping[str, str],
) -> None:
    sides = f"in the model: {_listed(model)}; in the checkpoint: {_listed(stored)}"
    for pattern in config.include:
        if not any(pattern == name or re.search(pattern, name) for name in restored):
            message = f"{_KEY}.include: {pattern!r} matches no variable that is in model and checkpoint both"
            raise ModelError(message, sides)
    for pattern in config.exclude:
        if not any(re.search(pattern, name) for name in model):
            raise ModelError(f"{_KEY}.exclude: {pattern!r} matches no variable of the model", sides)
    if not restored:
        message = f"{_KEY}: no variable of the model would be restored"
        raise ModelError(message, f"rename those that have another name; {sides}")


def _require_same_forms(
    restored: Mapping[str, str], stored: Mapping[str, Form], model: Mapping[str, Form]
) -> None:
    differing = [
        f"{old} is {stored[old]} in the checkpoint, {new} is {model[new]} in the model"
        for new, old in restored.items()
        if stored[old] != model[new]
    ]
    if differing:
        message = f"{_KEY}: shapes or dtypes differ: {'; '.join(differing)}"
        raise ModelError(message, f"name them in {_KEY}.exclude to have them initialised")


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names := list(names), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"there are: {_listed(names)}"


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    more = f" … ({len(shown)} in all)" if len(shown) > _NAMES_SHOWN else ""
    return ", ".join(shown[:_NAMES_SHOWN]) + more


def hooks(
    training: TrainingConfig, run: Run, first_step: int | None, tell: Callable[[str], None]
) -> list[WarmStart]:
    """Return the hook that warm-starts the model, if it is to be; what is not done is told.

    `first_step` is that of the checkpoint from which training goes on; None where it begins afresh.
    """
    config = training.warm_start
    if config is None:
        return []
    if first_step is not None:
        tell(f"no warm start: training goes on from the checkpoint of step {first_step}")
        return []
    path = run.source / Path(config.from_).expanduser()
    is_served = path.parent == run.model_base_path
    origin = f"version {path.name}" if is_served else config.from_
    return [WarmStart(config, prefix_at(path, f"{_KEY}.from"), origin, run.model_dir, tell)]


class WarmStart(tf.estimator.SessionRunHook):  # type: ignore[misc]
    """Has the variables of a graph begin as `plan` decides, before its session is made.

    A hook sees the graph of any Estimator, canned or not, after its model_fn and before the Scaffold
    collects the initializers.
    """

    def __init__(
        self, config: WarmStartConfig, prefix: Path, origin: str, model_dir: Path, tell: Callable[[str], None]
    ) -> None:
        """`origin` says in words whose values they are; `tell` gets what is restored and what is not."""
        self._config, self._prefix, self._origin = config, prefix, origin
        self._model_dir, self._tell = model_dir, tell

    def begin(self) -> None:
        """Replace the initializers. Raises ModelError before anything is trained."""
        if (reason := damage(self._prefix)) is not None:
            raise ModelError(f"{_KEY}.from: {self._prefix} is damaged: {reason}", "name another checkpoint")
        variables = _variables()
        model = {name: _form(slices[0]) for name, slices in variables.items()}
        planned = plan(self._config, _stored(self._prefix), model, _optimizers(model))
        for line in planned.told(self._origin):
            self._tell(line)
        durable_files.write(
            self._model_dir / _RECORD, json.dumps({"summary": planned.summary(self._origin)}).encode()
        )
        stored_keys = keys(tf.train.load_checkpoint(str(self._prefix)))
        for name, stored in planned.restored.items():
            slices = variables[name]
            target = slices if slices[0]._save_slice_info else slices[0]
            tf.compat.v1.train.init_from_checkpoint(str(self._prefix), {stored_keys[stored]: target})


def summary(model_dir: Path) -> str:
    """Return how the model in `model_dir` was warm-started, by this process or an earlier one, if it was."""
    try:
        return str(json.loads((model_dir / _RECORD).read_text())["summary"])
    except FileNotFoundError:
        return ""


def _stored(prefix: Path) -> dict[str, Form]:
    reader = tf.train.load_checkpoint(str(prefix))
    dtypes = reader.get_variable_to_dtype_map()
    shapes = reader.get_variable_to_shape_map()
    return {name: Form(tuple(shapes[key]), dtypes[key].name) for name, key in sorted(keys(reader).items())}


def _variables() -> dict[str, list[Any]]:
    """Return the graph's variables by the name that a checkpoint has for them, partitioned ones whole."""
    found: dict[str, list[Any]] = {}
    for variable in tf.compat.v1.global_variables():
        info = variable._save_slice_info
        found.setdefault(info.full_name if info else variable.op.name, []).append(variable)
    return found


def _form(variable: Any) -> Form:
    info = variable._save_slice_info
    shape = info.full_shape if info else variable.shape.as_list()
    return Form(tuple(shape), variable.dtype.base_dtype.name)


def _optimizers(names: Iterable[str]) -> list[str]:
    """Return which of the variables are global_step or an optimizer's, by how TensorFlow names these.

    Slots end in the name of what they belong to and their own (`dense/kernel/Adam`); Keras's are under
    `training/` besides; the powers of Adam's betas are scalars of their own.
    """
    trained = {variable.op.name for variable in tf.compat.v1.trainable_variables()}
    return [
        name for name in names
        if name == _GLOBAL_STEP
        or (name not in trained and name.startswith("training/"))
        or re.search(r"(^|/)beta[12]_power(_\d+)?$", name)
        or any(f"/{each}/" in f"/{name}" for each in trained)
    ]  # fmt: skip
