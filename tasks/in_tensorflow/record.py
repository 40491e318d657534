"""Program `record`: golden requests, from a version's sample examples or a server's request logs."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from configs.schema.pipeline import DataConfig, GoldenConfig
from tasks.answers import golden_requests, offline_answers
from tasks.answers.golden_requests import Log
from tasks.answers.request_privacy import Privacy
from tasks.core.artifacts import Candidate, Recording
from tasks.core.errors import DataError
from tasks.examples.tf_examples import read_records


def run(
    _progress: Callable[[Mapping[str, Any]], None],
    file: Path, model_name: str, requests: int, logs: tuple[Path, ...], candidate: Candidate,
    data: DataConfig, golden: GoldenConfig,
) -> Recording:  # fmt: skip
    """Write `file`: at most so many requests, each different, without what is not to travel.

    Of `logs` a sample is taken, each request with the same chance. Raises DataError, and writes nothing,
    where a request holds what is not listed.
    """
    privacy = Privacy(golden, data, candidate)
    found = _sampled(logs, requests) if logs else _of_samples(candidate, requests)
    cleaned = [privacy.cleaned(log, model_name).SerializeToString(deterministic=True) for log in found]
    distinct = list(dict.fromkeys(cleaned))
    if not distinct:
        raise DataError("the logs hold no Predict, Classify or Regress request")
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    with tf.io.TFRecordWriter(str(partial)) as writer:
        for record in distinct:
            writer.write(record)
    partial.replace(file)
    return Recording(file, len(distinct), tuple(sorted(privacy.changed)))


def _of_samples(candidate: Candidate, requests: int) -> Iterator[Log]:
    records = read_records([offline_answers.examples_file(candidate.offline)], limit=requests)
    return golden_requests.of_examples(candidate, records, requests)


def _sampled(logs: Sequence[Path], requests: int) -> list[Log]:
    """Return a sample of the requests in the files (reservoir sampling), the same one every time."""
    chance = random.Random(0)  # noqa: S311 (no secret)
    kept: list[Log] = []
    seen = 0
    for file in logs:
        for log in golden_requests.read(file):
            if golden_requests.request(log) is None:
                continue
            seen += 1
            if len(kept) < requests:
                kept.append(log)
            elif (place := chance.randrange(seen)) < requests:
                kept[place] = log
    return kept
