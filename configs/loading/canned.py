"""What tensorflow-estimator 2.15.0 has: canned Estimators, heads and optimizers, and the arguments of each.

Written down so that `slipway check` knows a misspelt name without TensorFlow, which takes seconds to import;
a test holds every table against the signatures.
"""

from __future__ import annotations

_ROLES = {
    "Classifier": ("n_classes", "weight_column", "label_vocabulary", "loss_reduction"),
    "Regressor": ("label_dimension", "weight_column", "loss_reduction"),
    "Estimator": ("head",),
}
_FAMILIES = {
    "DNN": ("hidden_units", "optimizer", "activation_fn", "dropout", "batch_norm", "warm_start_from"),
    "Linear": ("optimizer", "sparse_combiner", "warm_start_from"),
    "DNNLinearCombined": (
        "linear_optimizer", "dnn_optimizer", "dnn_hidden_units", "dnn_activation_fn", "dnn_dropout",
        "batch_norm", "linear_sparse_combiner", "warm_start_from",
    ),
    "Baseline": ("optimizer",),
}  # fmt: skip

COLUMN_PARAMETERS = ("feature_columns", "linear_feature_columns", "dnn_feature_columns")
"""Arguments that `model.feature_columns` becomes."""

ESTIMATORS = {
    f"{family}{role}": tuple(
        name for name in (*own, *_ROLES[role])
        if (family + role, name) != ("DNNLinearCombinedEstimator", "warm_start_from")
    )
    for family, own in _FAMILIES.items()
    for role in _ROLES
}  # fmt: skip
"""Canned Estimator to the arguments that `model.params` may set. BoostedTrees* were removed before 2.15."""

REQUIRED = ("hidden_units", "head")
"""Arguments without a default, of those Estimators that have them."""

_OF_HEADS = ("weight_column", "loss_reduction", "name")
HEADS = {
    "BinaryClassHead": ("thresholds", "label_vocabulary", "loss_fn", *_OF_HEADS),
    "LogisticRegressionHead": _OF_HEADS,
    "MultiClassHead": ("n_classes", "label_vocabulary", "loss_fn", *_OF_HEADS),
    "MultiHead": ("heads", "head_weights"),
    "MultiLabelHead": (
        "n_classes", "thresholds", "label_vocabulary", "loss_fn", "classes_for_class_based_metrics",
        *_OF_HEADS,
    ),
    "PoissonRegressionHead": ("label_dimension", "compute_full_loss", *_OF_HEADS),
    "RegressionHead": ("label_dimension", "loss_fn", "inverse_link_fn", *_OF_HEADS),
}  # fmt: skip
REQUIRED_OF_HEADS = {"MultiClassHead": "n_classes", "MultiLabelHead": "n_classes", "MultiHead": "heads"}

COMMON_TO_OPTIMIZERS = ("clipnorm", "clipvalue", "global_clipnorm", "decay")
_OF_ADAM = ("learning_rate", "beta_1", "beta_2", "epsilon")
OPTIMIZERS = {
    "Adadelta": ("learning_rate", "rho", "epsilon"),
    "Adagrad": ("learning_rate", "initial_accumulator_value", "epsilon"),
    "Adam": (*_OF_ADAM, "amsgrad"),
    "Adamax": _OF_ADAM,
    "Ftrl": (
        "learning_rate", "learning_rate_power", "initial_accumulator_value", "l1_regularization_strength",
        "l2_regularization_strength", "l2_shrinkage_regularization_strength", "beta",
    ),
    "Nadam": _OF_ADAM,
    "RMSprop": ("learning_rate", "rho", "momentum", "epsilon", "centered"),
    "SGD": ("learning_rate", "momentum", "nesterov"),
}  # fmt: skip
"""Of tf.keras.optimizers.legacy: Estimators take no others."""
