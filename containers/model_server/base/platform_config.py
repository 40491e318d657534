"""--platform_config_file: how SavedModels are loaded, in place of the flags that say the same.

Of tensorflow_serving/config/platform_config.proto and session_bundle_config.proto the fields that this
server can honour are declared; any other is an error that names it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from google.protobuf import any_pb2, wrappers_pb2
from tensorflow.core.protobuf import config_pb2

from model_server.base import text_protos
from model_server.base.flags import Options
from model_server.base.status import invalid_argument
from model_server.base.text_protos import Field

_PLATFORM = "tensorflow"
_PACKAGE = "tensorflow.serving"
_MESSAGES = text_protos.declare(
    "slipway/platform_config.proto",
    _PACKAGE,
    {
        "ModelWarmupOptions": [Field(1, "num_request_iterations", "google.protobuf.Int32Value")],
        "BatchingParameters": [
            Field(1, "max_batch_size", "google.protobuf.Int64Value"),
            Field(2, "batch_timeout_micros", "google.protobuf.Int64Value"),
            Field(3, "max_enqueued_batches", "google.protobuf.Int64Value"),
            Field(4, "num_batch_threads", "google.protobuf.Int64Value"),
            Field(5, "thread_pool_name", "google.protobuf.StringValue"),
            Field(6, "allowed_batch_sizes", "int64", repeated=True),
            Field(7, "pad_variable_length_inputs", "bool"),
            Field(8, "enable_large_batch_splitting", "google.protobuf.BoolValue"),
            Field(9, "max_execution_batch_size", "google.protobuf.Int64Value"),
        ],
        "SessionBundleConfig": [
            Field(2, "session_config", "tensorflow.ConfigProto"),
            Field(3, "batching_parameters", f"{_PACKAGE}.BatchingParameters"),
            Field(6, "saved_model_tags", "string", repeated=True),
            Field(779, "enable_model_warmup", "bool"),
            Field(780, "model_warmup_options", f"{_PACKAGE}.ModelWarmupOptions"),
            Field(782, "remove_unused_fields_from_bundle_metagraph", "bool"),
        ],
        "SavedModelBundleSourceAdapterConfig": [
            Field(1000, "legacy_config", f"{_PACKAGE}.SessionBundleConfig")
        ],
        "PlatformConfig": [Field(1, "source_adapter_config", "google.protobuf.Any")],
        "PlatformConfigMapEntry": [
            Field(1, "key", "string"),
            Field(2, "value", f"{_PACKAGE}.PlatformConfig"),
        ],
        "PlatformConfigMap": [
            Field(1, "platform_configs", f"{_PACKAGE}.PlatformConfigMapEntry", repeated=True)
        ],
    },
    imports=[each.DESCRIPTOR.name for each in (any_pb2, wrappers_pb2, config_pb2)],
)
BATCHING_PARAMETERS = _MESSAGES["BatchingParameters"]


def applied(options: Options) -> Options:
    """Return the options with what the file says in place of the flags; the same without a file."""
    if not options.platform_config_file:
        return options
    bundle = bundle_config(options.platform_config_file)
    return replace(
        options,
        saved_model_tags=",".join(bundle.saved_model_tags) or "serve",
        enable_model_warmup=bundle.enable_model_warmup,
        num_request_iterations_for_warmup=bundle.model_warmup_options.num_request_iterations.value,
        enable_batching=bundle.HasField("batching_parameters"),
        enable_per_model_batching_parameters=False,
    )


@lru_cache(maxsize=1)
def bundle_config(path: str) -> Any:
    """Return the SessionBundleConfig of the platform "tensorflow". Raises StatusError."""
    config: Any = text_protos.read(path, _MESSAGES["PlatformConfigMap"])
    for entry in config.platform_configs:
        if entry.key != _PLATFORM:
            raise invalid_argument(f'{path}: the only platform is "{_PLATFORM}", found "{entry.key}"')
        adapter = _MESSAGES["SavedModelBundleSourceAdapterConfig"]()
        if not entry.value.source_adapter_config.Unpack(adapter):
            url = entry.value.source_adapter_config.type_url
            raise invalid_argument(
                f"{path}: source_adapter_config must be a {adapter.DESCRIPTOR.full_name}, found {url}"
            )
        return adapter.legacy_config
    raise invalid_argument(f'{path}: no platform_configs for "{_PLATFORM}"')
