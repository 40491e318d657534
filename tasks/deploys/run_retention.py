"""Removes old runs by `runs.keep`, and compresses what stays. Plain files: no Prefect, no TensorFlow."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.loading.pipelines import Pipeline
from configs.schema.home import runs_folder
from tasks.core import durable_files
from tasks.exports import extra_assets
from tasks.runs import run_folders, run_order
from tasks.runs.resumable_runs import ENDED
from tasks.state import deploy_journal, model_versions

_log = logging.getLogger(__name__)
_REMOVING = ".removing"
_TIDIED = ".tidied"
_SECONDS_PER_DAY = 86_400
_COMPRESSION_LEVEL = (
    3  # of 9: TFRecords of floats get 5% smaller at the highest, which takes five times as long
)
_LEAST_BYTES_TO_LINK = 4096


@dataclass(frozen=True)
class Cleaned:
    """What was removed and compressed, or with `dry_run` what would be."""

    removed: tuple[str, ...]
    """Ids of runs, the oldest first."""
    tidied: tuple[str, ...]
    """Ids of runs whose examples were compressed and whose copies were linked."""
    kept: int
    freed_bytes: int

    def summary(self) -> str:
        """Return the result in a sentence."""
        return (
            f"{len(self.removed)} run(s) removed, {len(self.tidied)} compressed, {self.kept} kept; "
            f"{self.freed_bytes / 1e6:,.1f} MB freed"
        )


def clean(pipeline: Pipeline, under_way: str = "", *, dry_run: bool = False) -> Cleaned:
    """Remove the runs that `runs.keep` does not keep, and compress those that stay.

    Only for the holder of the pipeline's lock; `under_way` is the id of its own run, which is left alone.
    Raises JournalUnreadable, and then has removed nothing: the run that deployed is not known.
    """
    folder = runs_folder(pipeline.config.name)
    runs = (each for each in folder.glob("*/") if not each.name.startswith("."))
    run_ids = [run.name for run in sorted(runs, key=lambda each: (run_order.started(each), each.name))]
    needed = {under_way} | _needed(pipeline, run_ids)
    doomed = [run_id for run_id in _expired(pipeline, folder, run_ids) if run_id not in needed]
    kept = [run_id for run_id in run_ids if run_id not in doomed]
    tidied = [run_id for run_id in kept[:-1] if run_id != under_way and _is_to_be_tidied(folder / run_id)]
    before = sum(map(_bytes_in, (folder / run_id for run_id in (*doomed, *tidied))))
    if not dry_run:
        shutil.rmtree(folder / _REMOVING, ignore_errors=True)  # of a process that was killed
        for run_id in doomed:
            _remove(folder, run_id)
        for run_id in tidied:
            _tidy(folder / run_id)
    after = sum(map(_bytes_in, (folder / run_id for run_id in tidied)))
    return Cleaned(tuple(doomed), tuple(tidied), len(kept), max(0, before - after))


def _expired(pipeline: Pipeline, folder: Path, run_ids: list[str]) -> Iterator[str]:
    keep = pipeline.config.runs.keep
    if keep is None or not pipeline.model_base_path.is_dir():
        return  # without the base path, as while it is not mounted, it is not known what a rollback needs
    youngest = time.time() - keep.days * _SECONDS_PER_DAY
    for run_id in run_ids[: -keep.number]:
        if _changed_at(folder / run_id) < youngest:
            yield run_id


def _changed_at(run: Path) -> float:
    files = [run, *(file for name in ("verdict.json", "config.yaml") if (file := run / name).exists())]
    return max(file.stat().st_mtime for file in files)


def _needed(pipeline: Pipeline, run_ids: list[str]) -> set[str]:
    """Return the runs that a version, a resume, an unfinished deploy or the configuration needs."""
    name, base = pipeline.config.name, pipeline.model_base_path
    journal = deploy_journal.read(name)
    needed = {journal.run_id} if journal is not None else set()
    on_disk = {**model_versions.versions(base), **model_versions.withdrawn(base)}
    needed |= {str(extra_assets.read_manifest(folder).get("run_id")) for folder in on_disk.values()}
    warm_start = str(pipeline.config.training.warm_start)
    deployed_later = False
    for run_id in reversed(run_ids):
        verdict = run_folders.verdict_of(name, run_id) or {}
        outcome = verdict.get("outcome")
        if verdict.get("version") in on_disk or run_id in warm_start:
            needed.add(run_id)
        if outcome not in ENDED and not deployed_later:
            needed.add(run_id)
        deployed_later = deployed_later or outcome == "deployed"
    return needed


def _is_to_be_tidied(run: Path) -> bool:
    """Return whether a run has ended for good, and has not been tidied."""
    verdict = run_folders.verdict_of(run.parent.name, run.name) or {}
    return verdict.get("outcome") in ENDED and not (run / _TIDIED).exists()


def _remove(folder: Path, run_id: str) -> None:
    """Remove a run; by a rename first, so that nobody finds half of one."""
    hidden = folder / _REMOVING / run_id
    hidden.parent.mkdir(exist_ok=True)
    os.rename(folder / run_id, hidden)
    shutil.rmtree(hidden.parent)


def _tidy(run: Path) -> None:
    """Compress the examples, drop what was not finished, and link files that are the same."""
    for partial in run.rglob("*.partial"):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
    if (run / "examples").is_dir():
        shutil.rmtree(run / "ingested", ignore_errors=True)  # the same examples, before they were split
    for file in (run / "examples").glob("*.tfrecord"):
        _compress(file)
    _link_same(run)
    (run / _TIDIED).touch()


def _compress(file: Path) -> None:
    """Replace a TFRecord file by `<file>.gz`, as TensorFlow reads it with compression_type GZIP."""
    partial = file.with_name(f"{file.name}.gz.partial")
    with file.open("rb") as plain, gzip.open(partial, "wb", _COMPRESSION_LEVEL) as packed:
        shutil.copyfileobj(plain, packed, 1 << 20)
    durable_files.sync(partial)
    partial.rename(partial.with_suffix(""))
    file.unlink()


def _link_same(run: Path) -> None:
    """Replace files of the same content by hard links to one of them."""
    first: dict[tuple[int, str], Path] = {}
    for file in sorted(each for each in run.rglob("*") if each.is_file() and not each.is_symlink()):
        size = file.stat().st_size
        if size < _LEAST_BYTES_TO_LINK:
            continue
        same = first.setdefault((size, _digest(file)), file)
        if same is not file and not same.samefile(file):
            partial = file.with_name(f".{file.name}.partial")
            os.link(same, partial)
            partial.replace(file)


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while part := content.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _bytes_in(run: Path) -> int:
    """Return the space that the run's folder takes; linked files once."""
    inodes = {}
    for file in run.rglob("*"):
        status = file.lstat()
        inodes[status.st_ino] = status.st_blocks * 512
    return sum(inodes.values())
