"""Program `probe`: ask a served model about some examples, without knowing what it should answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from tensorflow.core.framework import types_pb2

from configs.schema import DataConfig
from tasks.answers.served import apis
from tasks.artifacts import Probe, Signature
from tasks.errors import SmokeTestFailed
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
    return Probe(answer.version, tuple(_shown(api, answer, index) for index in range(len(records))))


def _default(client: ServingClient) -> Signature:
    definitions = client.signatures()
    names = sorted(definitions, key=lambda name: (name != "serving_default", name))
    return signature(names[0], definitions[names[0]], _receiver(definitions[names[0]]))


def _receiver(definition: Any) -> Literal["parsing", "raw"]:
    """Tell serialized tf.Examples from feature tensors: the former are one string a row."""
    inputs = list(definition.inputs.values())
    one_string = len(inputs) == 1 and inputs[0].dtype == types_pb2.DT_STRING
    return "parsing" if one_string else "raw"


def _shown(api: str, answer: Answer, index: int) -> str:
    if api == "Classify":
        scores = answer.outputs["scores"][index]
        best = int(scores.argmax())
        label = answer.outputs["classes"][index][best].decode() or str(best)
        return f"Classify example {index}: {label} (score {scores[best]:.4f})"
    values = ", ".join(f"{alias} {array[index].tolist()}" for alias, array in sorted(answer.outputs.items()))
    return f"{api} example {index}: {values}"
