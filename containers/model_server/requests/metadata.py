"""GetModelMetadata (tensorflow_serving/servables/tensorflow/get_model_metadata_impl.cc)."""

from __future__ import annotations

from tensorflow_serving.apis import get_model_metadata_pb2

from model_server.base.status import invalid_argument
from model_server.models.servable import Servable

SIGNATURE_DEF = "signature_def"


def check_fields(request: get_model_metadata_pb2.GetModelMetadataRequest) -> None:
    """Raise StatusError where something else than signatures is asked for."""
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    if not request.metadata_field:
        raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != SIGNATURE_DEF:
            raise invalid_argument(f"Metadata field {field} is not supported")


def signature_map(servable: Servable) -> get_model_metadata_pb2.SignatureDefMap:
    """All signatures of the version, `__saved_model_init_op` among them."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for key, signature in servable.signatures.items():
        signatures.signature_def[key].CopyFrom(signature)
    return signatures


def signature_defs(
    servable: Servable, request: get_model_metadata_pb2.GetModelMetadataRequest
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Return the signatures as an Any under "signature_def"; the spec has name and version only."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = request.model_spec.name
    response.model_spec.version.value = servable.version
    response.metadata[SIGNATURE_DEF].Pack(signature_map(servable))
    return response
