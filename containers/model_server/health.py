"""`python -m model_server.health [SERVICE]`: exit 0 if the server here says SERVING, else 1.

The image's HEALTHCHECK. It imports no TensorFlow and answers in a fraction of a second. MODEL_SERVER_PORT
tells the gRPC port where that is not 8500.
"""

from __future__ import annotations

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_DEADLINE_SECONDS = 3.0


def main() -> int:
    """Ask once, with a deadline."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    service = sys.argv[1] if len(sys.argv) > 1 else ""
    address = f"127.0.0.1:{os.environ.get('MODEL_SERVER_PORT', '8500')}"
    try:
        with grpc.insecure_channel(address) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=_DEADLINE_SECONDS
            )
    except grpc.RpcError as error:
        print(error.code(), error.details())  # noqa: T201 (docker inspect shows it)
        return 1
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))  # noqa: T201
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
