"""The page that Prometheus reads: the counters of every process, summed, under the official names.

Facts from tensorflow_serving/util/prometheus_exporter.cc and servables/tensorflow/util.cc. The official
names have no version and no `_total`; what this server adds is called model_server_*.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model_server.base.status import Code
from model_server.observability import counters, metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OFFICIAL = ":tensorflow:serving:"
# The official server counts these; MultiInference and metadata it does not.
_COUNTED = ("Predict", "Classify", "Regress")

Labels = tuple[tuple[str, str], ...]
Block = tuple[tuple[Any, ...], list[int]]


class Sums:
    """Integers by labels: blocks of one kind, added up."""

    def __init__(self) -> None:
        self._by_labels: dict[Labels, list[int]] = {}

    def add(self, labels: Labels, words: Sequence[int]) -> None:
        """Add to what these labels have."""
        known = self._by_labels.get(labels, [0] * len(words))
        self._by_labels[labels] = [a + b for a, b in zip(known, words, strict=True)]

    def __iter__(self) -> Iterator[tuple[Labels, list[int]]]:
        return iter(sorted(self._by_labels.items()))


def page(
    recorder: metrics.Recorder,
    others: Iterable[Path],
    in_service: Collection[tuple[str, int]],
    build: Mapping[str, str],
) -> bytes:
    """Return the page: what this process counted, and the processes that wrote the files `others`.

    A version that is not `in_service` has no lines of its own any more; the model's sums keep its requests.
    """
    blocks = [*recorder.file.blocks(), *(block for path in others for block in counters.read(path))]
    requests = [block for block in blocks if block[0][0] == metrics.REQUEST]
    lines = [
        *_request_counts(requests),
        *_request_latencies(requests),
        *_runtime_latencies(requests),
        *_examples(requests),
        *_histograms(blocks),
        *_versions(requests, in_service),
        "# TYPE model_server_build_info gauge",
        _line("model_server_build_info", tuple(build.items()), 1),
    ]
    return ("\n".join(lines) + "\n").encode()


def _request_counts(requests: Iterable[Block]) -> Iterator[str]:
    sums = Sums()
    for (_, api, _entrypoint, model, *_rest), words in requests:
        if api in _COUNTED or not api:
            sums.add((("model_name", model),), words[: metrics.CODES])
    yield f"# TYPE {_OFFICIAL}request_count counter"
    for labels, counts in sums:
        yield from _by_status(f"{_OFFICIAL}request_count", labels, counts)


def _request_latencies(requests: Iterable[Block]) -> Iterator[str]:
    sums = Sums()
    for (_, api, entrypoint, model, *_rest), words in requests:
        if api in _COUNTED:
            # Over REST the official label is the method as it stands in the path.
            label = api.lower() if entrypoint == "REST" else api
            labels = (("model_name", model), ("API", label), ("entrypoint", entrypoint))
            sums.add(labels, _histogram(words, metrics.SUMS, metrics.LATENCIES, metrics.RUNTIMES))
    yield from _histogram_lines(f"{_OFFICIAL}request_latency", metrics.LATENCY_LIMITS, _in_micros(sums))


def _runtime_latencies(requests: Iterable[Block]) -> Iterator[str]:
    sums = Sums()
    for (_, api, _entrypoint, model, *_rest), words in requests:
        if api in _COUNTED:
            labels = (("model_name", model), ("API", api), ("runtime", "TF1"))
            sums.add(labels, _histogram(words, metrics.SUMS + 1, metrics.RUNTIMES, metrics.EXAMPLES))
    yield from _histogram_lines(f"{_OFFICIAL}runtime_latency", metrics.LATENCY_LIMITS, _in_micros(sums))


def _examples(requests: Iterable[Block]) -> Iterator[str]:
    sums = Sums()
    for (_, _api, _entrypoint, model, *_rest), words in requests:
        if words[metrics.SUMS + 2]:
            examples = _histogram(words, metrics.SUMS + 2, metrics.EXAMPLES, metrics.REQUEST_WORDS)
            sums.add((("model", model),), examples)
    yield from _histogram_lines(f"{_OFFICIAL}request_example_counts", metrics.EXAMPLE_LIMITS, sums)
    yield f"# TYPE {_OFFICIAL}request_example_count_total counter"
    for labels, words in sums:
        yield _line(f"{_OFFICIAL}request_example_count_total", labels, words[0])


def _histograms(blocks: Iterable[Block]) -> Iterator[str]:
    """Yield what Recorder.histogram() counted: by name, in the order of their first values."""
    sums: dict[tuple[str, tuple[float, ...]], Sums] = defaultdict(Sums)
    for key, words in blocks:
        if key[0] == metrics.HISTOGRAM and _is_there(key[3]):
            _, name, limits, labels = key
            sums[name, tuple(limits)].add(tuple(labels.items()), words)
    for (name, limits), by_labels in sums.items():
        yield from _histogram_lines(name, limits, by_labels) if limits else _counter_lines(name, by_labels)


def _is_there(labels: Mapping[str, str]) -> bool:
    """Tell whether a histogram is of something that still exists: of a directory, one that is on disk."""
    return "model_path" not in labels or Path(labels["model_path"]).is_dir()


def _versions(requests: Iterable[Block], in_service: Collection[tuple[str, int]]) -> Iterator[str]:
    sums = Sums()
    for (_, api, entrypoint, model, version, signature), words in requests:
        if (model, version) in in_service:
            labels = {
                "model_name": model,
                "version": str(version),
                "signature": signature,
                "API": api,
                "entrypoint": entrypoint,
            }
            sums.add(tuple(labels.items()), words)
    yield "# TYPE model_server_requests_total counter"
    for labelled, words in sums:
        yield from _by_status("model_server_requests_total", labelled, words[: metrics.CODES])
    latencies = Sums()
    for labelled, words in sums:
        latencies.add(labelled, _histogram(words, metrics.SUMS, metrics.LATENCIES, metrics.RUNTIMES))
    yield from _histogram_lines(
        "model_server_request_latency_microseconds", metrics.LATENCY_LIMITS, _in_micros(latencies)
    )


def _histogram(words: Sequence[int], total: int, first: int, end: int) -> list[int]:
    """Return the sum, then the buckets."""
    return [words[total], *words[first:end]]


def _in_micros(nanoseconds: Sums) -> Iterator[tuple[Labels, list[int]]]:
    for labels, (total, *buckets) in nanoseconds:
        yield labels, [total // 1000, *buckets]


def _histogram_lines(
    name: str, limits: Sequence[float], sums: Iterable[tuple[Labels, list[int]]]
) -> Iterator[str]:
    yield f"# TYPE {name} histogram"
    for labels, (total, *buckets) in sums:
        count = 0
        for limit, more in zip([*(f"{limit:g}" for limit in limits), "+Inf"], buckets, strict=True):
            count += more
            yield _line(f"{name}_bucket", (*labels, ("le", limit)), count)
        yield _line(f"{name}_sum", labels, total)
        yield _line(f"{name}_count", labels, count)


def _counter_lines(name: str, sums: Iterable[tuple[Labels, list[int]]]) -> Iterator[str]:
    yield f"# TYPE {name} counter"
    for labels, (_, count) in sums:
        yield _line(name, labels, count)


def _by_status(name: str, labels: Labels, counts: Sequence[int]) -> Iterator[str]:
    for code, count in zip(Code, counts, strict=True):
        if count:
            yield _line(name, (*labels, ("status", code.name)), count)


def _line(name: str, labels: Labels, value: int) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{name}{{{inside}}} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
