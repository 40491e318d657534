"""The slices `deployment`, `server` and `smoke_test`: where the model is served, and whether it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from configs.slices import Slice, Tolerance

Port = Annotated[int, Field(ge=0, le=65535)]


class DeploymentConfig(Slice):
    """Where and how the model is served."""

    target: Literal["auto", "docker", "process"] = "auto"
    """`docker`: a container. `process`: the same server as a local process. `auto`: a container where a
    Docker engine answers and its image can be had, else a process."""

    grpc_port: Port = 8500
    """Port of the gRPC API on 127.0.0.1; 0 picks a free one and keeps it."""

    rest_port: Port = 8501
    """Port of the REST API on 127.0.0.1; 0 picks a free one and keeps it."""

    load_timeout_seconds: PositiveFloat = 120.0
    """Longest time from asking for the new version to its being AVAILABLE, server start included."""

    @model_validator(mode="after")
    def _ports_differ(self) -> DeploymentConfig:
        if self.grpc_port == self.rest_port != 0:
            raise ValueError(f"grpc_port and rest_port are both {self.grpc_port}")
        return self


OWN_FLAGS = frozenset({"port", "rest_api_port", "model_name", "model_base_path"})


class ServerConfig(Slice):
    """Which model server to run; by default Slipway's own. At most one of `image` and `executable`."""

    image: str | None = None
    """Docker image to run in place of ours, `tensorflow/serving:2.15.1` for one."""

    executable: Path | None = None
    """Program to run in place of ours, a `tensorflow_model_server` for one."""

    flags: dict[str, str | bool | int | float] = {}
    """Further flags, as tensorflow_model_server names them: `{tensorflow_intra_op_parallelism: 2}`."""

    @model_validator(mode="after")
    def _is_one_server(self) -> ServerConfig:
        if self.image is not None and self.executable is not None:
            raise ValueError("give at most one of 'image' and 'executable'")
        owned = sorted(OWN_FLAGS & set(self.flags))
        if owned:
            raise ValueError(f"the flag {owned[0]!r} is set by Slipway (see 'deployment' and 'export')")
        return self


class SmokeTestConfig(Slice):
    """Questions put to the new version over real gRPC, before it is trusted."""

    samples: PositiveInt = 64
    """Most examples of the sample split that are asked for."""

    tolerance: Tolerance = "exact"
    """How far a served number may lie from the offline one: `exact`, or `{ulps: 4}`."""

    latency_requests: Annotated[int, Field(ge=20)] = 200
    """Requests of one example, one after the other, from which p50 and p99 are taken."""

    latency_p99_limit_ms: PositiveFloat | None = None
    """Largest acceptable p99 of these, in milliseconds."""

    request_timeout_seconds: PositiveFloat = 10.0
    """Deadline of each request."""
