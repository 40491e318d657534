"""Program of the stage `evaluate`: metrics of one checkpoint on the whole eval split."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any

from configs.schema import DataConfig, EvaluationConfig, ModelConfig, TrainingConfig
from tasks import accelerators, estimators
from tasks.artifacts import Checkpoint, Evaluation, Examples, Run
from tasks.preprocessing import preprocess_of
from tasks.tensorflow_errors import explained
from tasks.tf_examples import batches


def run(
    _progress: Callable[[Mapping[str, Any]], None],
    model: ModelConfig, training: TrainingConfig, evaluation: EvaluationConfig, data: DataConfig,
    examples: Examples, checkpoint: Checkpoint, run: Run,
) -> Evaluation:  # fmt: skip
    """Return every metric that is a number; no thresholds are looked at here."""
    session_config = accelerators.claim(training.accelerator)
    estimator = estimators.build(model, training, data, run, session_config)
    preprocess = preprocess_of(model, run)
    with explained(writes_to=run.model_dir):
        metrics = estimator.evaluate(
            lambda: batches(examples.eval.files, data, evaluation.batch_size, preprocess),
            checkpoint_path=str(checkpoint.prefix),
        )
    # NumPy's float32 is no numbers.Real to isinstance, but its .item() is.
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
    scalars = {name: float(value) for name, value in plain.items() if isinstance(value, numbers.Real)}
    return Evaluation(scalars, examples.eval.examples)
