"""--ssl_config_file: server credentials for gRPC, and the same for REST where it is asked for.

The file is a text proto SSLConfig that holds PEM text, not paths
(tensorflow_serving/config/ssl_config.proto).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from model_server.base import text_protos
from model_server.base.status import StatusError, invalid_argument
from model_server.base.text_protos import Field

_SSL_CONFIG = text_protos.declare(
    "tensorflow_serving/config/ssl_config.proto",
    "tensorflow.serving",
    {
        "SSLConfig": [
            Field(1, "server_key", "string"),
            Field(2, "server_cert", "string"),
            Field(3, "custom_ca", "string"),
            Field(4, "client_verify", "bool"),
        ]
    },
)["SSLConfig"]


@dataclass(frozen=True)
class TlsFiles:
    """Key, certificate chain and authority in PEM; with `client_verify` a client must show a certificate."""

    server_key: bytes
    server_cert: bytes
    custom_ca: bytes
    client_verify: bool

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For every port and UNIX socket that gRPC listens on."""
        return grpc.ssl_server_credentials(
            [(self.server_key, self.server_cert)],
            root_certificates=self.custom_ca or None,
            require_client_auth=self.client_verify,
        )

    def ssl_context(self) -> ssl.SSLContext:
        """Return the same for HTTP. Raises StatusError where key and certificates do not fit together."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        with ExitStack() as files:
            try:
                cert = files.enter_context(_in_memory(self.server_cert))
                context.load_cert_chain(cert, files.enter_context(_in_memory(self.server_key)), _no_password)
                if self.custom_ca:
                    context.load_verify_locations(cadata=self.custom_ca.decode())
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                raise _not_usable(str(error)) from None
        if self.client_verify:
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def read(path: str) -> TlsFiles:
    """Read an SSLConfig, and see that its parts fit together. Raises StatusError."""
    config: Any = text_protos.read(path, _SSL_CONFIG)
    for name in ("server_key", "server_cert"):
        if "-----BEGIN" not in getattr(config, name):
            raise _not_usable(f"{name} must hold PEM text (-----BEGIN …), not the path of a file")
    if config.client_verify and not config.custom_ca:
        raise _not_usable("client_verify needs custom_ca, which signed the clients' certificates")
    files = TlsFiles(
        config.server_key.encode(),
        config.server_cert.encode(),
        config.custom_ca.encode(),
        config.client_verify,
    )
    files.ssl_context()
    return files


def _not_usable(why: str) -> StatusError:
    return invalid_argument(f"--ssl_config_file: {why}")


def _no_password() -> str:
    raise ValueError("server_key is encrypted; a server that starts by itself needs it without a password")


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Give `content` a path, for OpenSSL, without writing a private key to any disk."""
    descriptor = os.memfd_create("pem")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
