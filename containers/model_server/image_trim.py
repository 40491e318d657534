"""Image build only: take out of an installed environment what serving never opens.

`python -m model_server.image_trim SITE_PACKAGES` prints what each step freed, in megabytes. The image's
tests are the proof that nothing is missed.
"""

from __future__ import annotations

import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

# Measured with tensorflow-cpu 2.15.1, in megabytes.
_UNUSED = (
    "tensorflow/include",  # 172: C++ headers
    "tensorflow/compiler",  # 22: MLIR quantization and StableHLO tools
    "tensorflow/lite",  # 19: converter and interpreter
    "tensorflow/core/kernels/libtfkernel_sobol_op.so",  # 5: only tf.math.sobol_sample loads it
    "tensorflow/_api",  # 4: the public names, which runtime.py does without
    "tensorflow/python/keras",
    "tensorflow/python/_pywrap_tfcompile.so",
    "tensorflow/xla_aot_runtime_src",
    "numpy/f2py",
    "numpy/distutils",
)
_UNUSED_NAMES = ("tests", "testdata", "testing")
_UNUSED_SUFFIXES = (".pyi", ".h", ".hpp", ".pxd", ".pyx", ".a", ".lib")
# numpy.testing is imported by numpy itself.
_KEPT = ("numpy/testing",)


def main() -> None:
    """Trim the site-packages directory that the command line names."""
    site_packages = Path(sys.argv[1])
    _report("as installed", _megabytes(site_packages))
    for unused in _UNUSED:
        _remove(site_packages / unused)
    _report("without what serving does not import", _megabytes(site_packages))
    for path in _by_name(site_packages):
        _remove(path)
    _report("without tests, headers and type stubs", _megabytes(site_packages))
    for library in site_packages.rglob("*.so*"):
        if library.is_file() and not library.is_symlink():
            strip_symbols(library)
    _report("without the libraries' symbol tables", _megabytes(site_packages))


def strip_symbols(library: Path) -> None:
    """Cut an ELF file off behind what the dynamic linker maps, as `strip` does in its last consequence.

    What follows the last segment are the symbol and string tables for debuggers, and the section headers
    that point to them. The dynamic symbols stay. (binutils are not in the base image.)
    """
    with library.open("r+b") as file:
        header = bytearray(file.read(64))
        if header[:6] != b"\x7fELF\x02\x01":  # 64 bit, little-endian
            return
        (program_headers,) = struct.unpack_from("<Q", header, 0x20)
        entry_size, count = struct.unpack_from("<HH", header, 0x36)
        file.seek(program_headers)
        table = file.read(entry_size * count)
        end = program_headers + entry_size * count
        for entry in range(0, len(table), entry_size):
            offset, _, _, size = struct.unpack_from("<QQQQ", table, entry + 8)
            end = max(end, offset + size)
        struct.pack_into("<Q", header, 0x28, 0)  # e_shoff
        struct.pack_into("<HH", header, 0x3C, 0, 0)  # e_shnum, e_shstrndx
        file.seek(0)
        file.write(header)
        file.truncate(end)


def _by_name(site_packages: Path) -> Iterator[Path]:
    kept = {site_packages / name for name in _KEPT}
    for path in sorted(site_packages.rglob("*")):
        if path not in kept and (path.name in _UNUSED_NAMES or path.suffix in _UNUSED_SUFFIXES):
            yield path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _megabytes(directory: Path) -> float:
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file()) / 1e6


def _report(step: str, megabytes: float) -> None:
    sys.stdout.write(f"{step}: {megabytes:.0f} MB\n")


if __name__ == "__main__":
    main()
