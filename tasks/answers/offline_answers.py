"""What `estimator.predict` said of the sample examples, on disk: the yardstick of every later answer.

In the candidate's `offline` folder: `examples.tfrecord`, and for each signature an npz with an array for
each output; and such an npz for each batch size, of what the export itself answered when it was validated.
NumPy only, so that the smoke test reads them without TensorFlow.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray


def examples_file(folder: Path) -> Path:
    """Return the TFRecord file of the serialized tf.Examples that were asked, in order."""
    return folder / "examples.tfrecord"


def answers_file(folder: Path, signature: str) -> Path:
    """Return the npz of a signature; characters that no file name should have are %-escaped."""
    return folder / f"{quote(signature, safe='')}.npz"


def in_process_file(folder: Path, signature: str, batch_size: int | Literal["all"]) -> Path:
    """Return the npz of what the export itself answered in a Python session, in batches of that size."""
    return folder / f"{batch_size}+{quote(signature, safe='')}.npz"  # no quoted name has a plus sign


def write(folder: Path, signature: str, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Write the arrays by output alias; strings become dtype S, so that reading needs no pickle."""
    _write(answers_file(folder, signature), outputs)


def write_in_process(
    folder: Path, signature: str, batch_size: int | Literal["all"], outputs: Mapping[str, NDArray[Any]]
) -> None:
    """Write what the export answered, by output alias."""
    _write(in_process_file(folder, signature, batch_size), outputs)


def _write(file: Path, outputs: Mapping[str, NDArray[Any]]) -> None:
    # Not np.savez: it takes aliases as keyword arguments, and `file` is one of its own.
    with zipfile.ZipFile(file, "w") as archive:
        for alias, array in outputs.items():
            plain = array.astype("S") if array.dtype.kind == "O" else array
            with archive.open(f"{quote(alias, safe='')}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(  # type: ignore[no-untyped-call]
                    member, np.asanyarray(plain), allow_pickle=False
                )


def read(folder: Path, signature: str) -> dict[str, NDArray[Any]]:
    """Return the arrays by output alias. Strings have dtype S."""
    return _read(answers_file(folder, signature))


def read_in_process(
    folder: Path, signature: str, batch_size: int | Literal["all"]
) -> dict[str, NDArray[Any]] | None:
    """Return them; None where the export was not asked in batches of that size, or by another release."""
    file = in_process_file(folder, signature, batch_size)
    return _read(file) if file.is_file() else None


def _read(file: Path) -> dict[str, NDArray[Any]]:
    with np.load(file, allow_pickle=False) as archive:
        return {unquote(name): archive[name] for name in archive.files}
