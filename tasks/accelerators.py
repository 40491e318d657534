"""Which devices TensorFlow may use; to be said before it does anything else."""

from __future__ import annotations

from typing import Any, Literal

import tensorflow as tf

from tasks.errors import EnvironmentFault


def claim(accelerator: Literal["auto", "cpu", "gpu"], memory_growth: bool = True) -> Any:
    """Make this process use the accelerator; return a tf.compat.v1.ConfigProto for its sessions.

    Raises EnvironmentFault where a GPU is asked for and there is none.
    """
    gpus = tf.config.list_physical_devices("GPU") if accelerator != "cpu" else []
    if accelerator == "gpu" and not gpus:
        raise EnvironmentFault(
            "training.accelerator is gpu, and TensorFlow finds no GPU here",
            "set training.accelerator to auto or cpu, or install the driver and "
            "tensorflow[and-cuda]==2.15.1; nvidia-smi must list the GPU",
        )
    tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, memory_growth)
    return _session_config(bool(gpus), memory_growth)


def _session_config(with_gpu: bool, memory_growth: bool) -> Any:
    # What tf.config says does not reach the TF1 sessions of an Estimator: they have a config of their own.
    config = tf.compat.v1.ConfigProto(allow_soft_placement=True)
    # As the Estimator's default has it: Grappler passes over the graph once.
    config.graph_options.rewrite_options.meta_optimizer_iterations = 1
    config.gpu_options.allow_growth = memory_growth
    if not with_gpu:
        config.device_count["GPU"] = 0
    return config
