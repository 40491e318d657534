"""Program `probe`: ask a served model about some examples, without knowing what it should answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tensorflow.core.framework import types_pb2

from configs.schema.pipeline import DataConfig
from tasks.answers.served import apis
from tasks.core.artifacts import Probe, Signature
from tasks.core.errors import SmokeTestFailed
from tasks.examples.tf_examples import read_records
from tasks.exports.saved_models import signature
from tasks.servers.serving_client import Answer, ServingClient


def run(
    _progress: Callable[[Mapping[str, Any]], None],
    grpc: str, tls: bool, model_name: str, version: int | None, examples: Path, data: DataConfig, count: int,
    timeout_seconds: float,
) -> Probe:  # fmt: skip
    """Ask the default signature about the first `count` examples; return its answers as text.

    Raises SmokeTestFailed where it does not answer, or another version than `version` does.
    """
    records = read_records([examples], limit=count)
    with ServingClient(grpc, model_name, timeout_seconds, tls) as client:
        *_, (api, ask) = apis(client, _default(client), data)
        answer = ask(records)
    if version is not None and answer.version != version:
        raise SmokeTestFailed(f"{grpc}: version {answer.version} answers, not {version}")
    return Probe(
        answer.version, tuple(_shown(api, answer, index, len(records)) for index in range(len(records)))
    )


def _default(client: ServingClient) -> Signature:
    definitions = client.signatures()
    names = sorted(definitions, key=lambda name: (name != "serving_default", name))
    return signature(names[0], definitions[names[0]], _receiver(definitions[names[0]]))


def _receiver(definition: Any) -> Literal["parsing", "raw"]:
    """Return `parsing` if the only input is a string tensor (serialized tf.Examples), otherwise `raw`."""
    inputs = list(definition.inputs.values())
    one_string = len(inputs) == 1 and inputs[0].dtype == types_pb2.DT_STRING
    return "parsing" if one_string else "raw"


def _shown(api: str, answer: Answer, index: int, examples: int) -> str:
    if api == "Classify":
        return f"Classify example {index}: {_best(answer, index)}"
    rows = {
        alias: array[index] if len(np.atleast_1d(array)) == examples else array  # else the same for all
        for alias, array in sorted(answer.outputs.items())
    }
    values = ", ".join(f"{alias} {_readable(np.asarray(row).tolist())}" for alias, row in rows.items())
    return f"{api} example {index}: {values}"


def _best(answer: Answer, index: int) -> str:
    """Return the label of the highest score; a head may export only scores, or only labels."""
    labels, scores = answer.outputs["classes"][index], answer.outputs["scores"][index]
    if any(labels) and not np.any(scores):
        return ", ".join(str(_readable(label)) for label in labels)
    best = int(scores.argmax())
    return f"{_readable(labels[best]) or best} (score {scores[best]:.4f})"


def _readable(value: Any) -> Any:
    """Return nested lists with text in place of bytes."""
    if isinstance(value, list):
        return [_readable(each) for each in value]
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value
