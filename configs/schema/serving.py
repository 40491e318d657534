"""The slices `deployment`, `server` and `smoke_test`: where the model is served, and whether it answers."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, NonNegativeFloat, PositiveFloat, Tag, model_validator

from configs.schema.slices import Slice

Port = Annotated[int, Field(ge=0, le=65535)]
OpSource = Annotated[str, Field(pattern=r"^(.+\.so|[A-Za-z_][A-Za-z0-9_-]*)$")]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]


class LatencyConfig(Slice):
    """How much slower than the version that serves the candidate may be, each in a server of its own."""

    p50_ratio: PositiveFloat | None = None
    """Largest acceptable median of the candidate's latencies, in parts of the live version's."""

    p99_ratio: PositiveFloat | None = None
    """Largest acceptable 99th percentile, likewise."""

    requests: Annotated[int, Field(ge=20)] = 200
    """Requests of one example to each of the two, in turns. Where a limit is missed, they are asked up to
    twice more, and the lowest ratio counts: the machine may have been busy, a slow model always is slow."""

    @model_validator(mode="after")
    def _limits_something(self) -> LatencyConfig:
        if self.p50_ratio is None and self.p99_ratio is None:
            raise ValueError("give 'p50_ratio', 'p99_ratio' or both")
        return self


class CanaryConfig(Slice):
    """What else is asked of the candidate in a server of its own, besides right answers."""

    latency: LatencyConfig | None = None
    """Limits of its latency beside that of the version that serves; none by default."""


def _canary_form(value: Any) -> str:
    return "CanaryConfig" if isinstance(value, dict | CanaryConfig) else "switch"


CanarySetting = Annotated[
    Annotated[bool, Tag("switch")] | Annotated[CanaryConfig, Tag("CanaryConfig")],
    Discriminator(_canary_form),
]


class DeploymentConfig(Slice):
    """Where and how the model is served."""

    canary: CanarySetting = True
    """Whether the candidate is first asked in a server of its own, of the same program and flags and on
    ports that no client knows, before anything of it is published. `false` where memory, or a GPU, does not
    suffice for two servers: then the first to ask it over gRPC may be a client. `{latency: {p50_ratio: 1.5,
    p99_ratio: 2}}`: `true`, and no slower than that beside the version that serves."""

    target: Literal["auto", "docker", "process", "external"] = "auto"
    """`docker`: a container. `process`: the same server as a local process. `auto`: a container where a
    Docker engine answers and its image can be had, else a process. `external`: a server that somebody else
    runs, at `host`, which watches the same `export.model_base_path`; a run never starts or stops it."""

    host: Host | None = None
    """Name or address of the server that `external` means."""

    grpc_port: Port = 8500
    """Port of the gRPC API, on 127.0.0.1 or on `host`; 0 picks a free one and keeps it."""

    rest_port: Port = 8501
    """Port of the REST API, on 127.0.0.1 or on `host`; 0 picks a free one and keeps it."""

    load_timeout_seconds: PositiveFloat = 120.0
    """Longest time from asking for the new version to its being AVAILABLE, server start included."""

    when_busy: Literal["refuse", "wait"] = "refuse"
    """What a run does while another run of the pipeline is under way, and a rollback while a deploy is:
    end at once, or wait for `busy_timeout_seconds` at most."""

    busy_timeout_seconds: PositiveFloat = 3600.0
    """Longest time that `when_busy: wait` waits."""

    @property
    def latency_of_canary(self) -> LatencyConfig | None:
        """How slow the candidate may be; None where that is not limited."""
        return self.canary.latency if isinstance(self.canary, CanaryConfig) else None

    @model_validator(mode="after")
    def _ports_differ(self) -> DeploymentConfig:
        if self.grpc_port == self.rest_port != 0:
            raise ValueError(f"grpc_port and rest_port are both {self.grpc_port}")
        return self

    @model_validator(mode="after")
    def _external_has_an_address(self) -> DeploymentConfig:
        if self.target != "external" and self.host is not None:
            raise ValueError("host is for target external: every other server listens on 127.0.0.1")
        if self.target == "external" and self.host is None:
            raise ValueError("target external needs host, the server that somebody else runs")
        if self.target == "external" and 0 in (self.grpc_port, self.rest_port):
            raise ValueError("target external needs grpc_port and rest_port: none can be picked there")
        return self


class GoldenConfig(Slice):
    """Requests that `slipway record` recorded once; every candidate answers them before it is published."""

    file: Path = Path("golden.tfrecord")
    """TFRecord of PredictionLogs, relative to the YAML, for you to keep under version control; where there is
    none, none is replayed."""

    features: dict[str, Literal["keep", "drop", "hash"]] = {}
    """What becomes of a feature, or of an input of a raw signature, when a request is recorded. `hash`: by a
    key that is thrown away (string and int64). Those of data.features are kept unless listed, labels are
    always dropped; any other has to be listed, so that nothing private travels unseen."""

    def path(self, folder: Path) -> Path:
        """Return where requests are, or would be, recorded; `folder` holds the YAML."""
        return folder / self.file.expanduser()

    def recorded(self, folder: Path) -> Path | None:
        """Return the file of recorded requests, None where there is none; `folder` holds the YAML."""
        file = self.path(folder)
        return file if file.is_file() else None

    def missing(self, folder: Path) -> Path | None:
        """Return a file that somebody named and that is not there, as after a typo; the default may lack."""
        named = self.file != type(self).model_fields["file"].default
        return self.path(folder) if named and self.recorded(folder) is None else None


class LimitsConfig(Slice):
    """What a server's container may take of the machine; a process has no limits but the machine's."""

    memory_mb: Annotated[int, Field(ge=64)] = 4096
    """Most memory, in MiB, swap included; beyond it the engine ends the server."""

    cpus: Annotated[float, Field(ge=0.01)] | None = None
    """Most processors, `1.5` for one; by default all of the engine's but one, and at least one."""

    pids: Annotated[int, Field(ge=16)] = 512
    """Most processes and threads."""


OWN_FLAGS = frozenset({"port", "rest_api_port", "model_name", "model_base_path"})


class ServerConfig(Slice):
    """Which model server to run; by default Slipway's own. At most one of `image` and `executable`."""

    image: str | None = None
    """Docker image to run in place of ours, `tensorflow/serving:2.15.1` for one."""

    executable: Path | None = None
    """Program to run in place of ours, a `tensorflow_model_server` for one."""

    network: Literal["relayed", "published", "host"] = "relayed"
    """How a container is reached. `relayed`: by a relay (HAProxy) that publishes its ports, in a network
    without a way out; a changed image or flag takes over without a gap. `published`: its own ports are, and
    there is no relay to pass (0.1 ms); a changed image or flag leaves a gap of seconds. `host`: in the
    machine's network, listening on 127.0.0.1: no relay and no gap, but the model's code can reach whatever
    else listens there."""

    address: IPv4Address = IPv4Address("127.0.0.1")
    """Address of this machine that a container's ports are published on; 0.0.0.0 is all of them. One that
    others reach needs TLS (`flags.ssl_config_file`; then gRPC alone is published there, and REST stays on
    127.0.0.1) or `insecure: true`."""

    insecure: bool = False
    """Whether others may reach the server without TLS. An `executable` needs it: Slipway cannot keep
    another's program from listening on all addresses."""

    limits: LimitsConfig = LimitsConfig()
    """Of the container; other limits are another server, which takes the running one's place."""

    published_only: bool = True
    """Whether Slipway's own server serves only versions that a run published: a folder that somebody copied
    into the base path is ignored, and the server's log says so. Those that are there before the first run
    count as published. Has no effect on an `image`, an `executable` or an external server."""

    ops: tuple[OpSource, ...] = ()
    """Libraries of custom ops that the model's graph may have: `ops/zero_out.so`, relative to the YAML, or an
    installed package such as `tensorflow-text`. They are loaded in training, evaluation, export, validation,
    canary and server. The version has their checksums, and a server that has loaded another build refuses it.
    A graph with ops of other libraries is not exported. An `image`, an `executable` and an external server
    must have the ops themselves."""

    flags: dict[str, str | bool | int | float] = {}
    """Further flags, as tensorflow_model_server names them: `{tensorflow_intra_op_parallelism: 2}`. The file
    of `ssl_config_file` is relative to the YAML, and read-only in a container."""

    @model_validator(mode="after")
    def _is_one_server(self) -> ServerConfig:
        if self.image is not None and self.executable is not None:
            raise ValueError("give at most one of 'image' and 'executable'")
        if self.network == "host" and self.image is not None:
            raise ValueError("network host is for Slipway's own image: others listen on all addresses")
        owned = sorted(OWN_FLAGS & set(self.flags))
        if owned:
            raise ValueError(f"the flag {owned[0]!r} is set by Slipway (see 'deployment' and 'export')")
        return self

    @model_validator(mode="after")
    def _is_open_on_purpose(self) -> ServerConfig:
        elsewhere = not self.address.is_loopback
        if elsewhere and not (self.insecure or self.ssl_config_file):
            raise ValueError(
                f"address {self.address} lets others in: give flags.ssl_config_file (TLS) or insecure: true"
            )
        if elsewhere and (self.network == "host" or self.executable is not None):
            raise ValueError("address is of a container in a network of its own (not 'network: host')")
        if self.executable is not None and not self.insecure:
            raise ValueError("an executable may listen on all addresses, without TLS: say insecure: true")
        return self

    @property
    def is_ours(self) -> bool:
        """Whether a run starts Slipway's own server."""
        return self.image is None and self.executable is None

    @property
    def serves_published_only(self) -> bool:
        """Whether the server that a run starts ignores versions that no run published."""
        return self.published_only and self.is_ours

    @property
    def ssl_config_file(self) -> str:
        """The flag of this name; "" where the server speaks without TLS."""
        return str(self.flags.get("ssl_config_file", ""))


class SmokeTestConfig(Slice):
    """Questions put to the new version over real gRPC, before it is trusted."""

    latency_requests: Annotated[int, Field(ge=20)] = 200
    """Requests of one example, one after the other, from which p50 and p99 are taken."""

    latency_p99_limit_ms: PositiveFloat | None = None
    """Largest acceptable p99 of these, in milliseconds."""

    request_timeout_seconds: PositiveFloat = 10.0
    """Deadline of each request."""

    watch_seconds: NonNegativeFloat = 0.0
    """How long the new version is asked again and again after its first answers, golden requests too where
    some are recorded; one wrong or late answer withdraws it."""
