"""Program of the stage `ingest`: tonight's examples, checked, split and written as TFRecords."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.schema.features import stored_in_examples
from configs.schema.pipeline import DataConfig
from tasks.core.artifacts import Examples, Run
from tasks.core.errors import DataError
from tasks.core.references import resolve
from tasks.data_quality import statistics
from tasks.examples.example_checks import ExampleChecker
from tasks.examples.example_sources import Batch, csv_batches, parquet_batches, tfrecord_batches
from tasks.examples.example_splits import SplitWriter
from tasks.examples.statistics_collector import StatisticsCollector
from tasks.examples.tensorflow_errors import disk_named, is_disk_full
from tasks.examples.tf_examples import examples_spec

SECONDS_BETWEEN_REPORTS = 1.0


def run(progress: Callable[[Mapping[str, Any]], None], data: DataConfig, run: Run) -> Examples:
    """Check every example and write the splits, and statistics of all, into `run.folder / "examples"`.

    Raises DataError, and then leaves no `examples` folder.
    """
    started = time.monotonic()
    folder = run.folder / "examples"
    for leftover in (folder, folder.with_suffix(".partial")):
        shutil.rmtree(leftover, ignore_errors=True)
    with disk_named(run.folder):
        if data.ingest is not None:
            callable_ = resolve(data.ingest, run.source, "data.ingest", DataError)
            progress({"message": f"{data.ingest} writes the examples"})
            files = _written_by(callable_, data.ingest, run.folder / "ingested")
        else:
            files = _matching(data, run.source)
        return _split(progress, data, files, run, started)


def _written_by(write: Callable[[Path], None], reference: str, folder: Path) -> list[Path]:
    """Call the pipeline's own callable with an empty `folder`; return the files that it wrote."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        write(folder)
    except DataError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise
        message = f"data.ingest = {reference!r} failed: {type(error).__name__}: {error}"
        raise DataError(message, "the traceback is in logs/ingest.log of the run") from error
    files = sorted(folder.glob("*.tfrecord"))
    if not files:
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        message = f"data.ingest = {reference!r}: expected *.tfrecord files in {folder}, found {found}"
        raise DataError(message, "write them into the folder that the callable is called with")
    return files


def _matching(data: DataConfig, source: Path) -> list[Path]:
    """Return the files that match any pattern, sorted, each once."""
    files: set[Path] = set()
    for pattern in data.files or ():
        matched = {path for path in _glob(source, pattern) if path.is_file()}
        if not matched:
            place = f"data.files: no file matches {pattern!r} (looked in {source})"
            raise DataError(place, "patterns are relative to the YAML, or absolute")
        files |= matched
    return sorted(files)


def _glob(source: Path, pattern: str) -> Iterator[Path]:
    path = Path(pattern).expanduser()
    if path.is_absolute():
        return Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    return source.glob(pattern)


def _split(
    progress: Callable[[Mapping[str, Any]], None],
    data: DataConfig, files: list[Path], run: Run, started: float,
) -> Examples:  # fmt: skip
    checker = ExampleChecker(examples_spec(data))
    collector = StatisticsCollector(examples_spec(data), data.gates, run.source)
    with SplitWriter(run.folder / "examples", data.split) as writer:
        reported, examples = time.monotonic(), 0
        for batch in _batches(data, files):
            checker.check(batch)
            writer.add(batch.records, checker.keys(batch, data.split.by))
            collector.add(batch)
            now = time.monotonic()
            if now - reported >= SECONDS_BETWEEN_REPORTS:
                pace = (writer.total - examples) / (now - reported)
                reported, examples = now, writer.total
                progress({"examples": examples, "examples_per_second": pace, "bytes": writer.bytes})
        checker.check_all(files)
        statistics.write(writer.partial / statistics.NAME, collector.statistics())
        return writer.finish(seconds=time.monotonic() - started)


def _batches(data: DataConfig, files: list[Path]) -> Iterator[Batch]:
    specs = stored_in_examples(examples_spec(data))
    for file in files:
        if data.format == "csv":
            yield from csv_batches(file, specs, data)
        elif data.format == "parquet":
            yield from parquet_batches(file, specs, data)
        else:
            yield from tfrecord_batches(file, data.compression)
