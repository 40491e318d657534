"""HandleReloadConfigRequest (tensorflow_serving/model_servers/model_service_impl.cc)."""

from __future__ import annotations

import logging

from tensorflow_serving.apis import model_management_pb2

from model_server.base.status import invalid_argument
from model_server.models.models import Models

_LOG = logging.getLogger(__name__)


def handle(
    models: Models, request: model_management_pb2.ReloadConfigRequest, timeout_seconds: float | None
) -> model_management_pb2.ReloadConfigResponse:
    """Replace the whole set of models, and answer when those that are new by name are available.

    Raises StatusError: for a config that is wrong, which changes nothing, and UNKNOWN where a new model does
    not load, DEADLINE_EXCEEDED where the caller's time is over: then the config is in force all the same, as
    it is in the official server, and loading goes on.
    """
    if request.config.WhichOneof("config") != "model_config_list":
        raise invalid_argument(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
    before = _counted(models)
    new = models.apply(request.config)
    _LOG.info("config reloaded; new models: %s", ", ".join(new) or "none")
    models.wait_until_settled(new, timeout_seconds)
    response = model_management_pb2.ReloadConfigResponse()
    response.status.error_code = 0
    after = _counted(models)
    for name in request.metric_names:
        response.metric.add(name=name, int64_value_increase=after.get(name, 0) - before.get(name, 0))
    return response


def _counted(models: Models) -> dict[str, int]:
    """Return the metrics that a reload increases; for all other names the official server answers 0 too."""
    return {"/tensorflow/cc/saved_model/load_attempt_count": models.load_attempts()}
