"""The slice `training.cluster`: training on TensorFlow's own distributed runtime."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from configs.schema.accelerators import Strategy
from configs.schema.slices import Slice

Port = Annotated[int, Field(ge=1, le=65535)]


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

    work_pool: str | None = None
    """A work pool of Prefect: each process but the chief is a flow run on it, so that any worker host takes
    one. By default all are processes of this machine. Hosts share $SLIPWAY_HOME and the checkout, at the
    same paths; see docs/how-to/clusters.md."""

    network: IPv4Network = IPv4Network("127.0.0.0/8")
    """Of `work_pool`: the network in which processes reach each other, such as 10.0.5.0/24. Each host
    has one address in it. TensorFlow asks nobody who they are: it must be private."""

    ports: tuple[Port, Port] | None = None
    """Of `work_pool`: first and last TCP port that processes may take. By default any that is free."""

    join_timeout_seconds: PositiveFloat = 300.0
    """Of `work_pool`: in so long, workers must have taken all processes, and these have met."""

    lease_seconds: Annotated[float, Field(ge=5)] = 30.0
    """Of `work_pool`: a process that has shown no sign of life for so long counts as dead. Those of a chief
    that counts as dead end by themselves."""

    @field_validator("ports")
    @classmethod
    def _is_a_range(cls, ports: Any) -> Any:
        if ports is not None and ports[0] > ports[1]:
            raise ValueError(f"{list(ports)}: the first port is above the last")
        return ports

    @model_validator(mode="after")
    def _only_a_pool_has_hosts(self) -> ClusterConfig:
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        of_hosts = ("network", "ports", "join_timeout_seconds", "lease_seconds")
        given = [name for name in of_hosts if getattr(self, name) != defaults[name]]
        if self.work_pool is None and given:
            raise ValueError(
                f"cluster.{given[0]} needs cluster.work_pool: without it, all are on this machine"
            )
        return self

    def problem_with(self, strategy: Strategy) -> str | None:
        """Return why this cluster cannot train with that strategy; None if it can."""
        if strategy == "mirrored":
            return "strategy mirrored is for one process: with a cluster say multi_worker_mirrored"
        if strategy == "multi_worker_mirrored" and self.parameter_servers:
            return "strategy multi_worker_mirrored needs cluster.parameter_servers 0: each worker has all"
        if strategy != "multi_worker_mirrored" and not self.parameter_servers:
            return f"strategy {strategy} needs cluster.parameter_servers of 1 or more"
        return None
