"""What a signature is fed for given tf.Examples, as a client would send it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from configs.schema.features import FeatureSpecs
from tasks.core.artifacts import Signature
from tasks.examples.tf_examples import parsing_spec


def request_inputs(
    signature: Signature, records: Sequence[bytes], features: FeatureSpecs
) -> dict[str, NDArray[Any]]:
    """Return input alias to array, the first dimension being the batch.

    A parsing signature takes the serialized tf.Examples (dtype object, [n]); a raw one the tensors of
    its features, parsed from them.
    """
    if signature.receiver == "parsing":
        return {alias: np.array(list(records), dtype=object) for alias in signature.inputs}
    parsed = tf.io.parse_example(tf.constant(list(records), tf.string), parsing_spec(features))
    return {alias: parsed[alias].numpy() for alias in signature.inputs}
