"""What a server answers over gRPC, in every signature and API, compared with the offline answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from numpy.typing import NDArray

from configs.schema import DataConfig, Tolerance
from tasks.answers import comparison, offline_answers
from tasks.answers.comparison import Tally
from tasks.answers.request_inputs import request_inputs
from tasks.artifacts import Candidate, Check, Signature
from tasks.errors import SmokeTestFailed
from tasks.servers.serving_client import Answer, ServingClient

_BATCHES = {8: 64, 2: 16, 1: 8}
"""Batch sizes besides that of all examples, and about how many examples each asks."""

Ask = Callable[[Sequence[bytes]], Answer]


def apis(client: ServingClient, signature: Signature, data: DataConfig) -> Iterator[tuple[str, Ask]]:
    """Yield each API that the signature has, and how it is asked about serialized tf.Examples."""
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
    """Return how a client that names no signature most likely asks."""
    named = {signature.name: signature for signature in candidate.signatures}
    default = named.get("serving_default", candidate.signatures[0])
    *_, (_, ask) = apis(client, default, data)
    return ask


class Compared:
    """What one API of one signature answered, beside `estimator.predict` and the export in process."""

    def __init__(self, api: str, signature: Signature, candidate: Candidate, tolerance: Tolerance) -> None:
        self.name, self.versions = f"{api} {signature.name}", set[int]()
        self._signature, self._folder = signature, candidate.offline
        self._offline = offline_answers.read(candidate.offline, signature.name)
        most = comparison.limit(tolerance)
        self._to_offline, self._to_export = Tally(most), Tally(most)

    @property
    def numbers(self) -> int:
        """How many numbers were compared with `estimator.predict`'s."""
        return self._to_offline.numbers

    @property
    def problem(self) -> str:
        """What is wrong first; "" where nothing is."""
        return self._to_offline.problem or self._to_export.problem

    @property
    def checks(self) -> Iterator[Check]:
        """Say how far the answers are from both."""
        yield self._check(self.name, "estimator.predict", self._to_offline)
        if self._to_export.numbers or self._to_export.problem:
            yield self._check(f"{self.name} in process", "the export in process", self._to_export)

    @staticmethod
    def _check(name: str, what: str, tally: Tally) -> Check:
        rule = f"{tally.limit.rule} {what}"
        return Check(name, rule, tally.observed, tally.limit.shown, not tally.problem)

    def ask(
        self, ask: Ask, records: Sequence[bytes], first: int, batch_size: int | Literal["all"] = 1
    ) -> None:
        """Ask about `records`, of which the first is example `first`; no answer is a problem too."""
        try:
            answer = ask(records)
        except SmokeTestFailed as error:
            self._to_offline.fail(error.message)
            return
        self.versions.add(answer.version)
        self._take(self._to_offline, answer, self._offline, range(first, first + len(records)))
        export = offline_answers.read_in_process(self._folder, self._signature.name, batch_size)
        if export is not None:
            self._take(self._to_export, answer, export, range(first, first + len(records)))

    def _take(
        self, tally: Tally, answer: Answer, expected: Mapping[str, NDArray[Any]], examples: range
    ) -> None:
        """Compare an answer about these examples with the expected ones, by alias."""
        # Of a head without classes (or scores) Classify answers empty ones: there is nothing to compare.
        for alias, every in expected.items():
            served = answer.outputs.get(alias)
            if served is None:
                tally.fail(f"{alias} is not answered")
                continue
            few = self._is_of_examples(alias) and len(every) < examples.stop
            if few and tally is self._to_export:
                continue  # it was asked about fewer examples than the server is
            wanted = every[examples.start : examples.stop] if self._is_of_examples(alias) else every
            _compare(tally, alias, wanted, served, examples.start)

    def _is_of_examples(self, alias: str) -> bool:
        """Say whether an output has a row for each example: its first dimension is not fixed."""
        shape = self._signature.outputs.get(alias, "").partition("[")[2]
        return not shape[:1].isdigit() and shape != "]"


def _compare(tally: Tally, alias: str, wanted: NDArray[Any], served: NDArray[Any], first: int) -> None:
    # Regress answers [n] for outputs of [n, 1] (tf_serving.md, 1.5).
    reshaped = served.reshape(wanted.shape) if served.size == wanted.size else served
    found = comparison.not_finite(reshaped) or comparison.compare(wanted, reshaped, tally.limit)
    tally.take(found, f"output {alias!r}", first)


def compared(
    client: ServingClient, candidate: Candidate, records: Sequence[bytes], data: DataConfig,
    tolerance: Tolerance,
) -> Iterator[Compared]:  # fmt: skip
    """Ask every signature by each of its APIs, about all examples at once, in eights, twos and singly."""
    for signature in candidate.signatures:
        for api, ask in apis(client, signature, data):
            found = Compared(api, signature, candidate, tolerance)
            found.ask(ask, records, 0, "all")
            for size, examples in _BATCHES.items():
                for first in range(0, min(len(records), examples), size):
                    if not found.problem:
                        found.ask(ask, records[first : first + size], first, size)
            yield found


def failed(checks: Sequence[Check]) -> str:
    """Name the first check that failed, and how many did; "" where none did."""
    missed = [check for check in checks if not check.passed]
    if not missed:
        return ""
    first, more = missed[0], len(missed) - 1
    also = f" (and {more} more checks failed)" if more else ""
    return f"{first.name} {first.rule}: observed {first.observed}, limit {first.limit}{also}"
