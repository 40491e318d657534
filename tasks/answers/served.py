"""What a server answers over gRPC, in every signature and API, compared with the offline answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from configs.schema.pipeline import DataConfig
from tasks.answers import comparison, held_to, limits
from tasks.answers.comparison import Comparison
from tasks.answers.held_to import HeldTo
from tasks.answers.offline_answers import Expected
from tasks.answers.request_inputs import request_inputs
from tasks.core.artifacts import Candidate, Check, Endpoint, Signature
from tasks.core.errors import SmokeTestFailed
from tasks.servers import model_status
from tasks.servers.serving_client import Answer, ServingClient

_BATCHES = {8: 64, 2: 16, 1: 8}
"""Batch sizes besides that of all examples, and about how many examples each asks."""

Ask = Callable[[Sequence[bytes]], Answer]


def apis(client: ServingClient, signature: Signature, data: DataConfig) -> Iterator[tuple[str, Ask]]:
    """Yield each API that the signature has, and how to request it for serialized tf.Examples."""
    yield (
        "Predict",
        lambda records: client.predict(signature.name, request_inputs(signature, records, data.features)),
    )
    if signature.receiver == "raw":
        return
    if signature.method == "classify":
        yield "Classify", lambda records: client.classify(signature.name, records)
    if signature.method == "regress":
        yield "Regress", lambda records: client.regress(signature.name, records)


def default_api(client: ServingClient, candidate: Candidate, data: DataConfig) -> Ask:
    """Return how a client that names no signature most likely sends a request."""
    named = {signature.name: signature for signature in candidate.signatures}
    default = named.get("serving_default", candidate.signatures[0])
    *_, (_, ask) = apis(client, default, data)
    return ask


@dataclass(frozen=True)
class ServerConditions:
    """What a server reports of how it rounds; empty and not alone if it reports nothing."""

    conditions: dict[str, str] = field(default_factory=dict)
    alone: bool = False
    """Whether no other client's request can share the run of ours."""

    @classmethod
    def of(cls, endpoint: Endpoint, *, unknown_to_clients: bool) -> ServerConditions:
        """Ask the server at `endpoint`; a server that no client knows has nobody to share a run with."""
        reported = model_status.numerics(endpoint.rest)
        merges = reported.pop("merges", "unknown")
        return cls(reported, unknown_to_clients or merges == "no")


@dataclass
class Compared:
    """What one API of one signature answered, beside the offline answers and the export in process."""

    api: str
    signature: Signature
    candidate: Candidate
    server: ServerConditions
    versions: set[int] = field(default_factory=set)
    to_predicted: Comparison = field(default_factory=Comparison)
    to_exported: Comparison = field(default_factory=Comparison)

    def __post_init__(self) -> None:
        folder, name = self.candidate.offline, self.signature.name
        self._predicted = Expected.of(folder, "predicted", self.signature)
        self._exported = Expected.of(folder, "exported", self.signature)
        known = limits.complete(limits.read(folder), name, self._predicted.whole)
        self.held_to = HeldTo.of(known, name, self.server.conditions, alone=self.server.alone)
        exported = replace(known, conditions=limits.exported_under(folder))
        self._rule_of_export = HeldTo.of(exported, name, self.server.conditions, alone=self.server.alone)

    @property
    def name(self) -> str:
        """The API and the signature."""
        return f"{self.api} {self.signature.name}"

    @property
    def broken(self) -> bool:
        """Whether it did not answer, or with something else than finite numbers of the right form."""
        return self.to_predicted.broken or self.to_exported.broken

    @property
    def problem(self) -> str:
        """What is wrong first; empty if nothing is."""
        return self.to_predicted.problem or self.to_exported.problem

    @property
    def checks(self) -> Iterator[Check]:
        """Yield how far the answers are from both."""
        yield self.held_to.check(self.name, self.candidate.answered_by, self.to_predicted)
        if self.to_exported.numbers or self.to_exported.problem:
            yield self._rule_of_export.check(
                f"{self.name} in process", "the export in process", self.to_exported
            )

    def ask(self, ask: Ask, records: Sequence[bytes], first: int) -> None:
        """Request answers about `records`, of which the first is sample `first`; none is a problem too."""
        try:
            answer = ask(records)
        except SmokeTestFailed as error:
            self.to_predicted += comparison.failed(error.message)
            return
        self.versions.add(answer.version)
        last = first + len(records)
        self.to_predicted += self._one(self.held_to, self._predicted, answer, first, last)
        if last <= self._exported.examples:
            self.to_exported += self._one(self._rule_of_export, self._exported, answer, first, last)

    @staticmethod
    def _one(rule: HeldTo, expected: Expected, answer: Answer, first: int, last: int) -> Comparison:
        rows, alike = expected.rows(first, last)
        place = f"batch of {last - first}, "
        return rule.compare_served(rows, answer.outputs, alike=alike, place=place, first=first)


def compared(
    client: ServingClient,
    candidate: Candidate,
    records: Sequence[bytes],
    data: DataConfig,
    server: ServerConditions,
) -> Iterator[Compared]:
    """Request every signature by each of its APIs, for all examples at once, in eights, twos and singly.

    Only for all at once if the signature's rows depend on one another.
    """
    for signature in candidate.signatures:
        for api, ask in apis(client, signature, data):
            found = Compared(api, signature, candidate, server)
            found.ask(ask, records, 0)
            sizes = _BATCHES if signature.row_independent else {}
            for size, examples in sizes.items():
                for first in range(0, min(len(records), examples), size):
                    if not found.problem:
                        found.ask(ask, records[first : first + size], first)
            yield found


def summary(found: Sequence[Compared]) -> tuple[int, str]:
    """Return the number of values compared, and how far they are from those of `estimator.predict`."""
    total = sum((each.to_predicted for each in found), Comparison())
    return total.numbers, held_to.summary(total, [each.held_to for each in found])


def failed(checks: Sequence[Check]) -> str:
    """Return the first check that failed, and how many did; empty if none did."""
    missed = [check for check in checks if not check.passed]
    if not missed:
        return ""
    first = missed[0]
    also = f" ({len(missed)} of {len(checks)} checks failed)"
    return f"{first.name}: {first.observed}{also}"
