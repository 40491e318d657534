"""A request body for the REST API that a person can paste after `curl -d @`."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.schema.pipeline import DataConfig
from tasks.answers.request_inputs import request_inputs
from tasks.core.artifacts import Signature


def write_sample(
    folder: Path, signatures: Sequence[Signature], records: Sequence[bytes], data: DataConfig
) -> None:
    """Write `rest_request.json`: a `:predict` request of `records` in the default signature, or the first.

    Feature tensors are given by row (`instances`), serialized tf.Examples by column (`inputs`).
    """
    by_name = {signature.name: signature for signature in signatures}
    signature = by_name.get("serving_default", signatures[0])
    inputs = {
        alias: [_plain(row) for row in array.tolist()]
        for alias, array in request_inputs(signature, records, data.features).items()
    }
    rows = [dict(zip(inputs, row, strict=True)) for row in zip(*inputs.values(), strict=True)]
    data_of = {"instances": rows} if signature.receiver == "raw" else {"inputs": inputs}
    body = {"signature_name": signature.name, **data_of}
    (folder / "rest_request.json").write_text(json.dumps(body) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
