"""The models of this server, by name: what a ModelSpec means, and what GetModelStatus says."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from tensorflow_serving.apis import get_model_status_pb2, model_pb2

from model_server.servable import Servable
from model_server.status import Code, StatusError, invalid_argument
from model_server.versions import ModelVersions, servable_not_found


class Catalog:
    """Looks up servables and statuses; raises StatusError in the official words."""

    def __init__(self, models: Mapping[str, ModelVersions]) -> None:
        self._models = models

    def use(self, spec: model_pb2.ModelSpec) -> AbstractContextManager[Servable]:
        """Return the servable that `spec` names, kept in service until the block ends."""
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        if spec.WhichOneof("version_choice") == "version_label":
            raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
        number = spec.version.value if spec.HasField("version") else None
        model = self._models.get(spec.name)
        if model is None:
            raise servable_not_found(spec.name, number)
        return model.use(number)

    def status(self, spec: model_pb2.ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        """Every version seen since the start, highest first, or the one that `spec` names."""
        model = self._models.get(spec.name)
        statuses = model.statuses() if model else []
        if not statuses:
            raise StatusError(Code.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        if spec.HasField("version"):
            statuses = [each for each in statuses if each[0] == spec.version.value]
            if not statuses:
                raise StatusError(
                    Code.NOT_FOUND, f"Could not find version {spec.version.value} of model {spec.name}"
                )
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, state, error in statuses:
            entry = response.model_version_status.add(version=number, state=int(state))
            entry.status.error_code = int(error.code) if error else 0
            entry.status.error_message = error.message if error else ""
        return response
