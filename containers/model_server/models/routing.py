"""Which versions of which models are in service: one immutable table, always replaced as a whole.

A request is answered by what a single table says of it, so that a swap, a moved label and a new model
config each take effect at one instant. The table holds numbers only: every process that answers requests
keeps the servables that it names. Error texts are the official ones (tensorflow_serving/core/manager.h,
model_servers/server_core.cc) and, on a line of their own, what there is instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from tensorflow_serving.apis import model_pb2

from model_server.base.status import Code, StatusError, invalid_argument, naming


@dataclass(frozen=True)
class Route:
    """The versions of one model that requests may reach, and labels as names for versions.

    A label may name a version that is not in service (--allow_version_labels_for_unavailable_models).
    """

    versions: frozenset[int] = frozenset()
    labels: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def latest(self) -> int | None:
        """The version that a request gets which names none: the highest; None without any."""
        return max(self.versions, default=None)


@dataclass(frozen=True)
class RoutingTable:
    """What is in service. Tables are numbered as they are published: a higher generation replaces a lower.

    A configured model of which nothing is in service has a Route without versions.
    """

    generation: int = 0
    models: Mapping[str, Route] = field(default_factory=dict)

    def resolve(self, spec: model_pb2.ModelSpec) -> int:
        """Return the number of the version in service that `spec` means.

        Raises StatusError: INVALID_ARGUMENT for an empty name or an unknown label, NOT_FOUND for a model or
        a version that is not in service.
        """
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        route = self.models.get(spec.name)
        choice = spec.WhichOneof("version_choice")
        if choice == "version_label":
            return self._in_service(spec.name, route, self._labelled(spec, route))
        if choice == "version":
            return self._in_service(spec.name, route, spec.version.value)
        if route is None or route.latest is None:
            raise self._not_found(spec.name, None)
        return route.latest

    def _labelled(self, spec: model_pb2.ModelSpec, route: Route | None) -> int:
        labels = route.labels if route else {}
        if spec.version_label not in labels:
            text = f"Unrecognized servable version label: {spec.version_label}"
            raise invalid_argument(naming(text, f"Labels of {spec.name}", sorted(labels)))
        return labels[spec.version_label]

    def _in_service(self, name: str, route: Route | None, number: int) -> int:
        if route is None or number not in route.versions:
            raise self._not_found(name, number)
        return number

    def _not_found(self, name: str, number: int | None) -> StatusError:
        which = f"Latest({name})" if number is None else f"Specific({name}, {number})"
        text = f"Servable not found for request: {which}"
        route = self.models.get(name)
        if route is not None and number is not None:
            there = naming(text, f"Versions of {name} in service", sorted(route.versions, reverse=True))
        else:
            in_service = [other for other, each in self.models.items() if each.versions]
            there = naming(text, "Models in service", sorted(in_service))
        return StatusError(Code.NOT_FOUND, there)
