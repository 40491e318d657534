"""What the sample examples should be answered: the baseline of every later comparison, on disk.

In the candidate's `offline` folder: `examples.tfrecord`; for each signature and batch size an npz of what
`estimator.predict` answered in batches of that size, and one of what the export itself answered when it was
validated; and the limits of the comparison (`limits.py`). NumPy only.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from tasks.answers.comparison import Arrays
from tasks.core.artifacts import Signature

Source = Literal["predicted", "exported"]
"""Who answered: `estimator.predict`, or the SavedModel in a Python session."""

_BFLOAT16 = ".bfloat16"  # NumPy's file format has no name for it: its bits are kept as uint16


def examples_file(folder: Path) -> Path:
    """Return the TFRecord file of the sample examples, serialized, in order."""
    return folder / "examples.tfrecord"


def file(folder: Path, source: Source, signature: str, batch_size: int) -> Path:
    """Return the npz of a signature's answers; characters that no file name should have are %-escaped."""
    return folder / f"{source}+{batch_size}+{quote(signature, safe='')}.npz"


def write(folder: Path, source: Source, signature: str, batch_size: int, outputs: Arrays) -> None:
    """Write the arrays by output alias; strings become dtype S, so that reading needs no pickle."""
    # Not np.savez: it takes aliases as keyword arguments, and `file` may be one of them.
    with zipfile.ZipFile(file(folder, source, signature, batch_size), "w") as archive:
        for alias, array in outputs.items():
            narrow = array.dtype.name == "bfloat16"
            plain = (
                array.view(np.uint16) if narrow else array.astype("S") if array.dtype.kind == "O" else array
            )
            name = f"{quote(alias, safe='')}{_BFLOAT16 if narrow else ''}.npy"
            with archive.open(name, "w", force_zip64=True) as member:
                np.lib.format.write_array(  # type: ignore[no-untyped-call]
                    member, np.asanyarray(plain), allow_pickle=False
                )


def read(folder: Path, source: Source, signature: str) -> dict[int, dict[str, NDArray[Any]]]:
    """Return the arrays by batch size and output alias. Strings have dtype S."""
    found = {}
    escaped = re.escape(quote(signature, safe=""))
    for path in folder.glob(f"{source}+*.npz"):
        if match := re.fullmatch(rf"{source}\+(\d+)\+{escaped}\.npz", path.name):
            found[int(match[1])] = _read(path)
    return dict(sorted(found.items()))


def _read(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(_named(name, archive[name]) for name in archive.files)


def _named(name: str, array: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    if not name.endswith(_BFLOAT16):
        return unquote(name), array
    import ml_dtypes  # which only a model with such an output needs

    return unquote(name.removesuffix(_BFLOAT16)), array.view(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Expected:
    """The expected answers of one signature, in each batch size."""

    signature: Signature
    by_size: Mapping[int, Arrays]

    @classmethod
    def of(cls, folder: Path, source: Source, signature: Signature) -> Expected:
        """Read them from an `offline` folder; there may be none of `exported`."""
        return cls(signature, read(folder, source, signature.name))

    @property
    def whole(self) -> Arrays:
        """The answers about all samples at once; {} if there are none."""
        return self.by_size[max(self.by_size)] if self.by_size else {}

    @property
    def examples(self) -> int:
        """Number of samples that were answered."""
        batched = (len(array) for alias, array in self.whole.items() if self.signature.is_batched(alias))
        return next(batched, 0)

    def rows(self, first: int, last: int) -> tuple[dict[str, NDArray[Any]], bool]:
        """Return the answers about the samples from `first` to before `last`, and whether they are alike.

        Alike are answers in exactly this batch; else they are of all samples at once.
        """
        total = self.examples
        for size, arrays in self.by_size.items():
            if first % size == 0 and last == min(first + size, total):
                return self._cut(arrays, first, last), True
        return self._cut(self.whole, first, last), False

    def _cut(self, arrays: Arrays, first: int, last: int) -> dict[str, NDArray[Any]]:
        return {
            alias: array[first:last] if self.signature.is_batched(alias) else array
            for alias, array in arrays.items()
        }
