"""The ConfigProto of every session, from the flags and --tensorflow_session_config_file."""

from __future__ import annotations

from functools import lru_cache

from tensorflow.core.protobuf import config_pb2

from model_server.base import platform_config, text_protos
from model_server.base.flags import Options
from model_server.base.status import invalid_argument


@lru_cache(maxsize=1)
def session_config(options: Options) -> config_pb2.ConfigProto:
    """Return the configuration; a flag other than 0 wins over the file, which is read once.

    With --platform_config_file, its session_config alone counts, as in the official server.
    Raises StatusError where the file cannot be read, or flags contradict each other.
    """
    config = _defaults()
    if options.platform_config_file:
        config.MergeFrom(platform_config.bundle_config(options.platform_config_file).session_config)
        return config
    if options.tensorflow_session_config_file:
        config.MergeFrom(text_protos.read(options.tensorflow_session_config_file, config_pb2.ConfigProto))
    both = options.tensorflow_session_parallelism
    intra, inter = options.tensorflow_intra_op_parallelism, options.tensorflow_inter_op_parallelism
    if both > 0 and intra > 0 and inter > 0:
        raise invalid_argument(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, "
            "server_options.tensorflow_inter_op_parallelism) separately. You cannot configure all."
        )
    if intra or both:
        config.intra_op_parallelism_threads = intra or both
    if inter or both:
        config.inter_op_parallelism_threads = inter or both
    if options.per_process_gpu_memory_fraction:
        config.gpu_options.per_process_gpu_memory_fraction = options.per_process_gpu_memory_fraction
    return config


def _defaults() -> config_pb2.ConfigProto:
    return config_pb2.ConfigProto(
        allow_soft_placement=True, gpu_options=config_pb2.GPUOptions(allow_growth=True)
    )
