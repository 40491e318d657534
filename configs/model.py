"""The slice `model`: the Estimator."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from configs.features import FeatureColumns
from configs.slices import Reference, Slice


class ModelConfig(Slice):
    """The Estimator: a canned one by its name, or one that a factory builds. One of the two."""

    estimator: str | None = None
    """Name of a canned Estimator in `tf.estimator`: DNNClassifier, DNNRegressor, DNNEstimator,
    LinearClassifier, LinearRegressor, LinearEstimator, DNNLinearCombinedClassifier,
    DNNLinearCombinedRegressor, DNNLinearCombinedEstimator, BaselineClassifier, BaselineRegressor,
    BaselineEstimator. (BoostedTrees* left tensorflow-estimator before 2.15.)"""

    factory: Reference | None = None
    """Callable that returns a `tf.estimator.Estimator`: `model.py:build_estimator`, called with
    (params: dict, config: tf.estimator.RunConfig)."""

    params: dict[str, Any] = {}
    """Arguments of the canned Estimator's constructor (`optimizer` may be a name or
    `{name: Adam, learning_rate: 0.01}`; `head` a `{name: MultiClassHead, n_classes: 3}`), or what the
    factory gets as `params`."""

    feature_columns: FeatureColumns | None = None
    """Feature columns of a canned Estimator; a mapping {linear, dnn} for the combined ones. By default
    each numeric fixed-length feature is a numeric column."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> ModelConfig:
        if (self.estimator is None) == (self.factory is None):
            raise ValueError("give exactly one of 'estimator' (a canned one) and 'factory' (a callable)")
        if self.factory is not None and self.feature_columns is not None:
            raise ValueError("a factory makes its own feature columns: remove 'feature_columns'")
        return self
