"""`training.accelerator` and `.strategy`: on which devices a model is trained, and how it is shared."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from configs.schema.slices import Slice

Device = Literal["auto", "cpu", "gpu"]
GpuId = Annotated[int, Field(ge=0)]


class AcceleratorConfig(Slice):
    """The devices that training and evaluation may use, and how much of them."""

    device: Device = "auto"
    """`gpu` fails before training starts where there is none; `auto` takes GPUs where there are any."""

    gpus: Literal["all"] | PositiveInt | tuple[GpuId, ...] = "all"
    """Which GPUs: `all`, the first so many, or a list of their numbers, as `nvidia-smi` counts them."""

    memory_growth: bool = True
    """Allocate GPU memory as needed, instead of all of it (or all of the limit) at once."""

    memory_limit_mb: PositiveInt | None = None
    """Most MiB of each GPU's memory that TensorFlow takes. By default no limit."""

    cpus: PositiveInt = 1
    """Logical devices that the CPU is shown as. More than one is for trying a `strategy` without GPUs."""

    concurrency_limit: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "slipway-gpu"
    """Prefect's global concurrency limit that a stage holds while it may use a GPU; made, with one slot,
    where it is missing. Machines that share a Prefect server and have GPUs of their own name one each."""

    @field_validator("gpus")
    @classmethod
    def _names_each_once(cls, gpus: Any) -> Any:
        if isinstance(gpus, tuple) and (not gpus or len(set(gpus)) != len(gpus)):
            raise ValueError(f"{list(gpus)}: list at least one GPU, and each once (or device: cpu)")
        return gpus

    @model_validator(mode="after")
    def _cpu_has_no_gpus(self) -> AcceleratorConfig:
        if self.device == "cpu" and (self.gpus != "all" or self.memory_limit_mb is not None):
            raise ValueError("'gpus' and 'memory_limit_mb' need device gpu or auto, not cpu")
        return self

    @classmethod
    def of(cls, accelerator: Accelerator) -> AcceleratorConfig:
        """Return the long form of what `training.accelerator` says."""
        return accelerator if isinstance(accelerator, AcceleratorConfig) else cls(device=accelerator)


def _accelerator_form(value: Any) -> str:
    return "AcceleratorConfig" if isinstance(value, dict | AcceleratorConfig) else "device"


Accelerator = Annotated[
    Annotated[Device, Tag("device")] | Annotated[AcceleratorConfig, Tag("AcceleratorConfig")],
    Discriminator(_accelerator_form),
]
"""A device, or a mapping that also says which and how much of it."""

Strategy = Literal["none", "mirrored", "parameter_server", "multi_worker_mirrored"]
"""How a model is shared among devices and workers."""
