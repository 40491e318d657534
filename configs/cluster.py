"""The slice `training.cluster`: training on TensorFlow's own distributed runtime."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from configs.accelerators import Strategy
from configs.slices import Slice


class ClusterConfig(Slice):
    """Processes that train one model together, each with its part in a TF_CONFIG."""

    workers: PositiveInt = 2
    """Processes that compute gradients. The first is the chief, which also saves checkpoints."""

    parameter_servers: Annotated[int, Field(ge=0)] = 1
    """Processes that hold the variables: at least one, but none with strategy multi_worker_mirrored."""

    evaluator: bool = False
    """One more process, which evaluates each checkpoint on the eval split while training goes on: for
    TensorBoard, under checkpoints/eval."""

    restarts: Annotated[int, Field(ge=0)] = 3
    """How often each process but the chief is started again when it dies, before the attempt is given up.
    With multi_worker_mirrored the attempt ends at once: all workers go on from the last checkpoint."""

    def problem_with(self, strategy: Strategy) -> str | None:
        """Say why this cluster cannot train by that strategy; None where it can."""
        if strategy == "mirrored":
            return "strategy mirrored is for one process: with a cluster say multi_worker_mirrored"
        if strategy == "multi_worker_mirrored" and self.parameter_servers:
            return "strategy multi_worker_mirrored needs cluster.parameter_servers 0: each worker has all"
        if strategy != "multi_worker_mirrored" and not self.parameter_servers:
            return f"strategy {strategy} needs cluster.parameter_servers of 1 or more"
        return None
