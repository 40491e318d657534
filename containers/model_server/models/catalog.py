"""The models of this server, by name: what a ModelSpec means, and what GetModelStatus says."""

from __future__ import annotations

from contextlib import AbstractContextManager

from tensorflow_serving.apis import get_model_status_pb2, model_pb2

from model_server.base.status import Code, StatusError, naming
from model_server.models.models import Models
from model_server.models.servable import Servable
from model_server.models.servable_store import ServableStore


class Catalog:
    """Looks up servables and statuses; raises StatusError in the official words."""

    def __init__(self, store: ServableStore, models: Models) -> None:
        self._store = store
        self.models = models

    def use(self, spec: model_pb2.ModelSpec) -> AbstractContextManager[Servable]:
        """Return the servable that `spec` names, kept in service until the block ends."""
        return self._store.use(spec)

    def status(self, spec: model_pb2.ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        """Every version seen since the start, highest first, or the one that `spec` names.

        A version_label is passed over, as get_model_status_impl.cc does.
        """
        response = self.statuses(spec.name)
        if not response.model_version_status:
            text = f"Could not find any versions of model {spec.name}"
            raise StatusError(Code.NOT_FOUND, naming(text, "Models", self.models.names()))
        if not spec.HasField("version"):
            return response
        asked = [each for each in response.model_version_status if each.version == spec.version.value]
        if not asked:
            text = f"Could not find version {spec.version.value} of model {spec.name}"
            numbers = [each.version for each in response.model_version_status]
            raise StatusError(Code.NOT_FOUND, naming(text, f"Versions of {spec.name}", numbers))
        return get_model_status_pb2.GetModelStatusResponse(model_version_status=asked)

    def statuses(self, name: str) -> get_model_status_pb2.GetModelStatusResponse:
        """Every version of a model seen since the start, highest first; none of a model that is not known."""
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, state, error in self.models.statuses(name):
            entry = response.model_version_status.add(version=number, state=int(state))
            entry.status.error_code = int(error.code) if error else 0
            entry.status.error_message = error.message if error else ""
        return response
