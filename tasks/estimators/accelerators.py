"""Which devices TensorFlow may use; to be said before it does anything else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from configs.schema.accelerators import Accelerator, AcceleratorConfig
from tasks.core.errors import EnvironmentFault


def claim(accelerator: Accelerator) -> Any:
    """Make this process use the accelerator; return a tf.compat.v1.ConfigProto for its sessions.

    Raises EnvironmentFault where a GPU is asked for that is not there.
    """
    wanted = AcceleratorConfig.of(accelerator)
    numbers = _gpu_numbers(wanted)
    _configure_eager_context(wanted, numbers)
    return _session_config(wanted, numbers)


def _gpu_numbers(wanted: AcceleratorConfig) -> list[int]:
    """Return the numbers of the GPUs to use: indices into TensorFlow's list of physical ones."""
    found = tf.config.list_physical_devices("GPU") if wanted.device != "cpu" else []
    if wanted.device == "gpu" and not found:
        raise EnvironmentFault(
            "training.accelerator asks for a GPU, and TensorFlow finds no GPU here",
            "set training.accelerator to auto or cpu, or install the driver and slipway[gpu] (which is "
            "tensorflow[and-cuda]==2.15.1); nvidia-smi must list the GPU",
        )
    there = list(range(len(found)))
    if not there or wanted.gpus == "all":
        return there
    asked = list(range(wanted.gpus)) if isinstance(wanted.gpus, int) else list(wanted.gpus)
    if not set(asked) <= set(there):
        raise EnvironmentFault(
            f"training.accelerator.gpus asks for GPU {_listed(asked)}; TensorFlow finds {_named(found)}",
            f"name among {_listed(there)} (CUDA_VISIBLE_DEVICES, if set, hides others: "
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'it is not set')})",
        )
    return asked


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _named(found: Sequence[Any]) -> str:
    names = (tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in found)
    return ", ".join(f"{number} ({name})" for number, name in enumerate(names))


def _configure_eager_context(wanted: AcceleratorConfig, numbers: Sequence[int]) -> None:
    found = tf.config.list_physical_devices("GPU")
    gpus = [found[number] for number in numbers]
    tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        if wanted.memory_limit_mb is None:
            tf.config.experimental.set_memory_growth(gpu, wanted.memory_growth)
        else:
            _split(gpu, [wanted.memory_limit_mb])
    if wanted.cpus > 1:
        _split(tf.config.list_physical_devices("CPU")[0], [None] * wanted.cpus)


def _split(device: Any, limits_mb: Sequence[int | None]) -> None:
    parts = [tf.config.LogicalDeviceConfiguration(memory_limit=limit) for limit in limits_mb]
    tf.config.set_logical_device_configuration(device, parts)


def _session_config(wanted: AcceleratorConfig, numbers: Sequence[int]) -> Any:
    # What tf.config says does not reach the TF1 sessions of an Estimator: they have a config of their own.
    config = tf.compat.v1.ConfigProto(allow_soft_placement=True)
    # As the Estimator's default has it: Grappler passes over the graph once.
    config.graph_options.rewrite_options.meta_optimizer_iterations = 1
    config.device_count["CPU"] = wanted.cpus
    options = config.gpu_options
    options.allow_growth = wanted.memory_growth
    options.visible_device_list = ",".join(map(str, numbers))
    if not numbers:
        config.device_count["GPU"] = 0
    if wanted.memory_limit_mb is not None:
        for _ in numbers:
            options.experimental.virtual_devices.add().memory_limit_mb.append(wanted.memory_limit_mb)
    return config
