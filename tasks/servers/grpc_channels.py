"""gRPC channels to model servers, and whether anything answers on them; without TensorFlow's protos."""

from __future__ import annotations

import ssl
from typing import Literal

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # http_proxy is for what is outside; gRPC would ask it for 127.0.0.1 too
]
_STATUS_METHOD = "/tensorflow.serving.ModelService/GetModelStatus"
_SILENT_CODES = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)

Response = Literal["answers", "silent", "unreachable"]
"""`silent`: connections are accepted and requests are not answered, as by a server that hangs."""


def response(address: str, model_name: str, timeout_seconds: float, tls: bool = False) -> Response:
    """Return how the server at `host:port` responds to GetModelStatus; any status counts as an answer."""
    # GetModelStatusRequest{model_spec: {name}}: two fields numbered 1, and a name is shorter than 126 bytes.
    name = model_name.encode()[:120]
    spec = b"\x0a" + bytes((len(name),)) + name
    try:
        with open_channel(address, timeout_seconds, tls) as channel:
            ask = channel.unary_unary(_STATUS_METHOD, None, None)
            ask(b"\x0a" + bytes((len(spec),)) + spec, timeout=timeout_seconds)
    except grpc.RpcError as error:
        if error.code() in _SILENT_CODES:
            return "silent"
        return "unreachable" if error.code() is grpc.StatusCode.UNAVAILABLE else "answers"
    except TimeoutError:
        return "silent"
    except OSError:
        return "unreachable"
    return "answers"


def open_channel(address: str, timeout_seconds: float, tls: bool) -> grpc.Channel:
    """Return a channel of its own to `host:port`, without limits on messages.

    With `tls` it takes whatever certificate the server shows: that server is Slipway's, on this machine.
    Raises OSError if none is shown.
    """
    options = [*_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    if not tls:
        return grpc.insecure_channel(address, options=options)
    host, _, port = address.rpartition(":")
    shown = ssl.get_server_certificate((host, int(port)), timeout=timeout_seconds)
    named = [*options, ("grpc.ssl_target_name_override", _name_in(shown))]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(shown.encode()), named)


def _name_in(certificate: str) -> str:
    """Return a name that the certificate is for, or "localhost" if it has none."""
    parsed = x509.load_pem_x509_certificate(certificate.encode())
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    found = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    found += [str(each.value) for each in parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return next(iter(found), "localhost").replace("*", "any")
