"""What of a request may travel with every version: features are kept, dropped or hashed as listed."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from configs.schema.features import stored_in_examples
from configs.schema.pipeline import DataConfig, GoldenConfig
from tasks.answers.golden_requests import Log, request
from tasks.core.artifacts import Candidate
from tasks.core.errors import DataError


class Privacy:
    """The list of one pipeline, and a key for hashing that nobody keeps."""

    def __init__(self, golden: GoldenConfig, data: DataConfig, candidate: Candidate) -> None:
        self._listed, self._key = golden.features, secrets.token_bytes(32)
        self._known, self._labels = (
            set(stored_in_examples(data.features)),
            set(stored_in_examples(data.label)),
        )
        self._parsing = {each.name: each.receiver == "parsing" for each in candidate.signatures}
        self.changed: set[str] = set()
        """What was dropped or hashed, in any request."""

    def cleaned(self, log: Log, model_name: str) -> Log:
        """Return the request alone, for the newest version of this model, with features as listed.

        Raises DataError naming a feature that is neither the model's nor listed.
        """
        clean = type(log)()
        asked = getattr(clean, log.WhichOneof("log_type")).request
        asked.CopyFrom(request(log))
        signature = asked.model_spec.signature_name or "serving_default"
        asked.model_spec.Clear()
        asked.model_spec.name, asked.model_spec.signature_name = model_name, signature
        if signature not in self._parsing:
            known = ", ".join(self._parsing)
            raise DataError(f"a request asks for the signature {signature!r}", f"the model has {known}")
        if isinstance(asked, predict_pb2.PredictRequest):
            for alias in list(asked.inputs):
                self._clean_input(asked.inputs, alias, self._parsing[signature])
        else:
            for example in _examples(asked.input):
                self._clean_example(example)
        return clean

    def _clean_input(self, inputs: Any, alias: str, parsing: bool) -> None:
        values = tf.make_ndarray(inputs[alias])
        fate = "keep" if parsing else self._fate(alias)
        if fate == "drop":
            del inputs[alias]
        elif parsing or fate == "hash":
            clean = [
                self._clean_serialized(value) if parsing else self._hashed(alias, value)
                for value in values.ravel()
            ]
            array = np.array(clean, dtype=values.dtype).reshape(values.shape)
            inputs[alias].CopyFrom(tf.make_tensor_proto(array))

    def _clean_serialized(self, serialized: bytes) -> bytes:
        example = tf.train.Example.FromString(serialized)
        self._clean_example(example)
        return bytes(example.SerializeToString(deterministic=True))

    def _clean_example(self, example: Any) -> None:
        features = example.features.feature
        for name in list(features):
            fate = self._fate(name)
            if fate == "drop":
                del features[name]
            elif fate == "hash" and (kind := features[name].WhichOneof("kind")):
                values = getattr(features[name], kind).value
                values[:] = [self._hashed(name, value) for value in values]

    def _fate(self, name: str) -> str:
        fate: str | None = "drop" if name in self._labels else self._listed.get(name)
        if fate in ("drop", "hash"):
            self.changed.add(name)
        if fate is not None:
            return fate
        if name in self._known:
            return "keep"
        raise DataError(
            f"a request holds {name!r}, which is not in data.features: it would travel with every version",
            f"list it: golden.features: {{{name}: drop}} (or hash, or keep), and record again",
        )

    def _hashed(self, name: str, value: Any) -> Any:
        text = value if isinstance(value, bytes) else str(value).encode()
        digest = hmac.new(self._key, text, hashlib.sha256)
        if isinstance(value, bytes):
            return digest.hexdigest().encode()
        if isinstance(value, int | np.integer):
            return int.from_bytes(digest.digest()[:8], "big") >> 1  # an int64 that is not negative
        raise DataError(f"{name!r} holds floats, which cannot be hashed", "drop it or keep it")


def _examples(given: Any) -> Iterator[Any]:
    if given.WhichOneof("kind") == "example_list_with_context":
        yield given.example_list_with_context.context
        yield from given.example_list_with_context.examples
    else:
        yield from given.example_list.examples
