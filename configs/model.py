"""The slice `model`: the Estimator, or the graph."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from configs.features import FeatureColumns
from configs.slices import Reference, Slice


class ModelConfig(Slice):
    """A canned Estimator by its name, one that a factory builds, or a graph. One of the three."""

    estimator: str | None = None
    """Name of a canned Estimator in `tf.estimator`: DNNClassifier, DNNRegressor, DNNEstimator,
    LinearClassifier, LinearRegressor, LinearEstimator, DNNLinearCombinedClassifier,
    DNNLinearCombinedRegressor, DNNLinearCombinedEstimator, BaselineClassifier, BaselineRegressor,
    BaselineEstimator. (BoostedTrees* left tensorflow-estimator before 2.15.)"""

    factory: Reference | None = None
    """Callable that returns a `tf.estimator.Estimator`: `model.py:build_estimator`, called with
    (params: dict, config: tf.estimator.RunConfig)."""

    graph: Reference | None = None
    """Callable that builds a TF1 graph, without an Estimator: `graph.py:build_graph`, called with
    (features: dict, labels, tags: tuple, params: dict); see `tasks/estimators/graph_pipelines.py` for what it
    returns."""

    params: dict[str, Any] = {}
    """Arguments of the canned Estimator's constructor (`optimizer` may be a name or
    `{name: Adam, learning_rate: 0.01}`; `head` a `{name: MultiClassHead, n_classes: 3}`), or what the
    factory or a graph's function gets as `params`."""

    feature_columns: FeatureColumns | None = None
    """Feature columns of a canned Estimator; a mapping {linear, dnn} for the combined ones. By default
    each numeric fixed-length feature is a numeric column."""

    preprocess: Reference | None = None
    """Callable from a dict of parsed features to the dict of features that the model sees, with
    TensorFlow ops: `model.py:preprocess`. The same one at training, evaluation and serving."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> ModelConfig:
        if [self.estimator, self.factory, self.graph].count(None) != 2:  # noqa: PLR2004 (all but one)
            raise ValueError(
                "give exactly one of 'estimator' (a canned one), 'factory' and 'graph' (callables)"
            )
        if self.estimator is None and self.feature_columns is not None:
            kind = "factory" if self.factory else "graph"
            raise ValueError(f"a {kind} makes its own feature columns: remove 'feature_columns'")
        return self
