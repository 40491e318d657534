"""One training at a time on a GPU: a slot of a global concurrency limit of Prefect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists

from configs.schema.accelerators import Accelerator, AcceleratorConfig
from tasks.runs.stages import report

_DRIVER = Path("/proc/driver/nvidia/gpus")


@contextmanager
def held(accelerator: Accelerator) -> Iterator[None]:
    """Hold a slot while the block runs, where it may use a GPU; waits until one is free.

    A flow that is killed gives its slot back when Prefect's lease ends, 5 minutes later.
    """
    wanted = AcceleratorConfig.of(accelerator)
    if not may_use_gpu(wanted):
        yield
        return
    _make_if_missing(wanted.concurrency_limit)
    report({"message": f"waiting for a slot of {wanted.concurrency_limit}"})
    with concurrency(wanted.concurrency_limit, strict=True):
        yield


def may_use_gpu(accelerator: AcceleratorConfig) -> bool:
    """Return whether a GPU may be used; for `auto` ask the driver, as TensorFlow is not imported here."""
    return accelerator.device == "gpu" or (accelerator.device == "auto" and _DRIVER.is_dir())


def _make_if_missing(name: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        except ObjectAlreadyExists:
            pass  # a slot count that somebody has set stays
