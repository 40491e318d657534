"""`python -m model_server.processes.health [SERVICE]`: exit 0 if the server here says SERVING, else 1.

The image's HEALTHCHECK. It imports no TensorFlow and answers in a fraction of a second. It asks the gRPC
port, and where that speaks TLS, /readyz over plain HTTP instead. MODEL_SERVER_PORT and
MODEL_SERVER_REST_PORT tell the ports where they are not 8500 and 8501.
"""

from __future__ import annotations

import http.client
import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_DEADLINE_SECONDS = 1.5


def main() -> int:
    """Ask once, with a deadline."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    service = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        said = _over_grpc(service)
    except grpc.RpcError as error:
        said = f"{error.code()} {error.details()}"
        if error.code() is grpc.StatusCode.UNAVAILABLE and not service:
            said = _over_http() or said
    print(said)  # noqa: T201 (docker inspect shows it)
    return 0 if said == "SERVING" else 1


def _over_grpc(service: str) -> str:
    with grpc.insecure_channel(f"127.0.0.1:{_port('MODEL_SERVER_PORT', 8500)}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=service), timeout=_DEADLINE_SECONDS
        )
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _over_http() -> str:
    """Return what /readyz says, in the health service's words; empty where nobody answers."""
    port = _port("MODEL_SERVER_REST_PORT", 8501)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_DEADLINE_SECONDS)
    try:
        connection.request("GET", "/readyz")
        return "SERVING" if connection.getresponse().status == http.client.OK else "NOT_SERVING"
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _port(variable: str, default: int) -> int:
    # Kubernetes sets MODEL_SERVER_PORT to tcp://… where a service is called model-server.
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default


if __name__ == "__main__":
    sys.exit(main())
