"""`model.graph`: a user's function that builds a TF1 graph, in place of an Estimator.

    build_graph(features, labels, tags, params) -> dict

is called once for each graph. `tags` says which: `("train",)`, `("eval",)`, or the tags of a MetaGraph
that is exported, such as `("serve",)` and `("serve", "gpu")`. It returns

    loss        a scalar; with the tags train and eval
    train_op    an op that makes one step, and counts it in the global step; with the tag train
    metrics     {name: (value, update_op)}, as tf.compat.v1.metrics makes them; with eval, if any
    signatures  {name: {"method": "predict" | "classify" | "regress", "outputs": {alias: tensor}}}, with the
                tag serve; `method` is predict if left out. The aliases of classify are `scores` and
                `classes` (one of them will do), that of regress is `outputs`.

The Estimator's loop trains it (`tf.compat.v1.train.MonitoredTrainingSession`, `tf.train.Saver`, hooks); the
export is `graph_exports.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from configs.schema.pipeline import ModelConfig
from tasks.core.artifacts import Run
from tasks.core.errors import ModelError
from tasks.core.references import resolve

TRAIN, EVAL, SERVE = "train", "eval", "serve"
_RESULTS = {"loss", "train_op", "metrics", "signatures"}
_ALIASES = {"classify": {"scores", "classes"}, "regress": {"outputs"}}


@dataclass(frozen=True)
class GraphFunction:
    """The user's function and its parameters; what it returns is checked."""

    place: str
    function: Callable[..., Any]
    params: Mapping[str, Any]

    def build(self, features: Any, labels: Any, tags: Sequence[str]) -> dict[str, Any]:
        """Add its ops to the current graph; return what it names. Raises ModelError."""
        place = f"{self.place} (tags {','.join(tags)})"
        try:
            built = self.function(features, labels, tuple(tags), dict(self.params))
        except Exception as error:
            message = f"{place} failed: {type(error).__name__}: {error}"
            raise ModelError(message, "it is called with (features, labels, tags, params)") from error
        _require(built, tags, place)
        return dict(built)

    def export_outputs(self, built: Mapping[str, Any]) -> dict[str, Any]:
        """Return the signatures as tf.estimator.export's outputs, by name."""
        return {name: _output(name, each, self.place) for name, each in built["signatures"].items()}


def graph_of(model: ModelConfig, run: Run) -> GraphFunction:
    """Return the function that `model.graph` names. Raises ModelError."""
    function = resolve(str(model.graph), run.source, "model.graph", ModelError)
    return GraphFunction(f"model.graph = {model.graph!r}", function, model.params)


def estimator(graph: GraphFunction, config: Any) -> Any:
    """Return a tf.estimator.Estimator around the function; `config` is its tf.estimator.RunConfig."""
    modes = tf.estimator.ModeKeys
    tags_of = {modes.TRAIN: (TRAIN,), modes.EVAL: (EVAL,), modes.PREDICT: (SERVE,)}

    def model_fn(features: Any, labels: Any, mode: str) -> Any:
        built = graph.build(features, labels, tags_of[mode])
        if mode == modes.PREDICT:
            outputs = graph.export_outputs(built)
            return tf.estimator.EstimatorSpec(mode, predictions=_first(built), export_outputs=outputs)
        metrics = built.get("metrics") if mode == modes.EVAL else None
        return tf.estimator.EstimatorSpec(
            mode, loss=built["loss"], train_op=built.get("train_op"), eval_metric_ops=metrics
        )

    return tf.estimator.Estimator(model_fn, config=config)


def _first(built: Mapping[str, Any]) -> dict[str, Any]:
    signatures = built["signatures"]
    return dict(signatures.get("serving_default", next(iter(signatures.values())))["outputs"])


def _require(built: Any, tags: Sequence[str], place: str) -> None:
    """Raise ModelError unless the function returned what these tags need."""
    needed = {TRAIN: {"loss", "train_op"}, EVAL: {"loss"}, SERVE: {"signatures"}}
    if not isinstance(built, Mapping):
        message = f"{place}: expected it to return a dict, found {type(built).__name__}"
        raise ModelError(message, f"its keys are {', '.join(sorted(_RESULTS))}")
    missing = sorted({key for tag in tags for key in needed.get(tag, ())} - set(built))
    unknown = sorted(set(built) - _RESULTS)
    if missing or unknown:
        found = f"there is no {missing[0]!r}" if missing else f"{unknown[0]!r} is not known"
        raise ModelError(
            f"{place}: of what it returned {found}", f"the keys are {', '.join(sorted(_RESULTS))}"
        )
    if SERVE in tags and not built["signatures"]:
        raise ModelError(f"{place}: 'signatures' is empty", "name one serving_default")


def _output(name: str, signature: Any, place: str) -> Any:
    """Return one signature as a PredictOutput, ClassificationOutput or RegressionOutput."""
    stated = dict(signature) if isinstance(signature, Mapping) else {}
    method, outputs = stated.pop("method", "predict"), stated.pop("outputs", None)
    known = _ALIASES.get(method)
    if stated or not isinstance(outputs, Mapping) or not outputs or method not in ("predict", *_ALIASES):
        message = f"{place}: signature {name!r}: expected {{method, outputs: {{alias: tensor}}}}"
        raise ModelError(f"{message}, found {signature!r}", "methods: predict, classify, regress")
    if known is not None and not known.issuperset(outputs):
        message = f"{place}: signature {name!r}: the outputs of {method} are {', '.join(sorted(known))}"
        raise ModelError(f"{message}, found {', '.join(outputs)}", "or make it a predict signature")
    if method == "classify":
        return tf.estimator.export.ClassificationOutput(outputs.get("scores"), outputs.get("classes"))
    if method == "regress":
        return tf.estimator.export.RegressionOutput(outputs["outputs"])
    return tf.estimator.export.PredictOutput(dict(outputs))
