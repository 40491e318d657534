"""--monitoring_config_file: where the metrics page is (tensorflow_serving/config/monitoring_config.proto)."""

from __future__ import annotations

from typing import Any

from model_server.base import text_protos
from model_server.base.status import invalid_argument
from model_server.base.text_protos import Field

DEFAULT_PATH = "/monitoring/prometheus/metrics"
_MONITORING_CONFIG = text_protos.declare(
    "tensorflow_serving/config/monitoring_config.proto",
    "tensorflow.serving",
    {
        "PrometheusConfig": [Field(1, "enable", "bool"), Field(2, "path", "string")],
        "MonitoringConfig": [Field(1, "prometheus_config", "tensorflow.serving.PrometheusConfig")],
    },
)["MonitoringConfig"]


def metrics_path(path: str) -> str:
    """Return the path of the metrics page over HTTP; empty where the file does not ask for one."""
    if not path:
        return ""
    config: Any = text_protos.read(path, _MONITORING_CONFIG)
    if not config.prometheus_config.enable:
        return ""
    found = config.prometheus_config.path or DEFAULT_PATH
    if not found.startswith("/"):
        raise invalid_argument(f"{path}: prometheus_config.path must begin with /, found '{found}'")
    return str(found)
