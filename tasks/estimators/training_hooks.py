"""Session hooks of training: progress for people, and stopping at a step when asked to."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from configs.schema.pipeline import TrainingConfig

SECONDS_BETWEEN_REPORTS = 1.0
_STATEFUL_RANDOM_OPS = {
    "Multinomial", "RandomGamma", "RandomPoissonV2", "RandomShuffle", "RandomStandardNormal",
    "RandomUniform", "RandomUniformInt", "TruncatedNormal",
}  # fmt: skip


class ReportProgress(tf.estimator.SessionRunHook):  # type: ignore[misc]
    """Reports step, loss, steps/s and examples/s every `log_every_steps`, and at least every second.

    The loss is fetched only in the steps that are reported; the others cost a look at the clock.
    """

    def __init__(self, progress: Callable[[Mapping[str, Any]], None], training: TrainingConfig) -> None:
        self._progress, self._training = progress, training
        self._fetches: Any = None
        self._global_step: Any = None
        self.first_step = self.step = 0
        self.loss: float | None = None
        self._started = self._reported = 0.0
        self._reported_step = 0

    def begin(self) -> None:
        """Find the loss that the Estimator minimises: it adds it to LOSSES last, after the user's."""
        loss = tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.LOSSES)[-1]
        self._fetches = tf.estimator.SessionRunArgs(loss)
        self._global_step = tf.compat.v1.train.get_global_step()

    def after_create_session(self, session: Any, _coord: Any) -> None:
        """Record the global step at the start of this process."""
        self.first_step = self.step = int(session.run(tf.compat.v1.train.get_global_step()))
        self._reported_step = self.step
        self._started = self._reported = time.monotonic()

    def before_run(self, _run_context: Any) -> Any:
        """Fetch the loss when a report is due after this step."""
        return self._fetches if self._is_due() else None

    def _is_due(self) -> bool:
        step = self.step + 1
        return (
            step % self._training.log_every_steps == 0
            or step >= self._training.max_steps
            or time.monotonic() - self._reported >= SECONDS_BETWEEN_REPORTS
        )

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Count the step, and report; by the global step, as in a cluster others make steps too."""
        self.step += 1
        if run_values.results is not None:
            self.loss = float(run_values.results)
            self.step = int(run_context.session.run(self._global_step))
            self._report()

    def _report(self) -> None:
        now = time.monotonic()
        pace = (self.step - self._reported_step) / max(now - self._reported, 1e-9)
        self._reported, self._reported_step = now, self.step
        self._progress({
            "step": self.step, "max_steps": self._training.max_steps, "loss": self.loss,
            "steps_per_second": pace, "examples_per_second": pace * self._training.batch_size,
        })  # fmt: skip

    def end(self, session: Any) -> None:
        """Record the global step at the end of this process."""
        self.step = int(session.run(tf.compat.v1.train.get_global_step()))

    def steps_per_second(self) -> float | None:
        """Return the pace of this process, hooks and checkpoints included; None where it made no step."""
        steps = self.step - self.first_step
        return steps / (time.monotonic() - self._started) if steps else None


class ReportEvaluation(tf.estimator.SessionRunHook):  # type: ignore[misc]
    """Tells every second that a checkpoint is being evaluated: this is no stall."""

    def __init__(self, progress: Callable[[Mapping[str, Any]], None], step: int, max_steps: int) -> None:
        self._progress = progress
        self._told = {"step": step, "max_steps": max_steps, "message": f"evaluating the checkpoint of {step}"}
        self._reported = 0.0

    def after_run(self, _run_context: Any, _run_values: Any) -> None:
        """Report progress, once a second."""
        if time.monotonic() - self._reported >= SECONDS_BETWEEN_REPORTS:
            self._reported = time.monotonic()
            self._progress(self._told)


class WarnOfRandomOps(tf.estimator.SessionRunHook):  # type: ignore[misc]
    """Tells which random ops of the model draw from a state that no checkpoint holds."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def begin(self) -> None:
        """Check every op that the loss depends on, except initializers."""
        loss = tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.LOSSES)[-1]
        found = sorted(op.name for op in _computed_from(loss.op) if op.type in _STATEFUL_RANDOM_OPS)
        if found:
            self._tell(
                f"training.deterministic: {', '.join(found)} draw from a state that no checkpoint holds: "
                "training that is resumed will differ; use tf.random.stateless_* with the global step as seed"
            )


def _computed_from(last: Any) -> set[Any]:
    seen, pending = {last}, [last]
    while pending:
        op = pending.pop()
        before = {tensor.op for tensor in op.inputs} | set(op.control_inputs)
        pending.extend(before - seen)
        seen |= before
    return seen


class StopOnSigterm(tf.estimator.SessionRunHook):  # type: ignore[misc]
    """Ends training after the current step once SIGTERM came; the Estimator then saves a checkpoint."""

    def __init__(self) -> None:
        self.asked = False

    def is_asked(self) -> bool:
        """Return whether SIGTERM came."""
        return self.asked

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM inside the block."""
        before = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _ask(self, _signal_number: int, _frame: Any) -> None:
        self.asked = True

    def after_run(self, run_context: Any, _run_values: Any) -> None:
        """Request the stop; the session's other hooks end as after the last step."""
        if self.asked:
            run_context.request_stop()
