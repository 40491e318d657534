"""`slipway init`: a pipeline of the user's own, from a sample of the data."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.loading.errors import ConfigError, SlipwayError
from configs.loading.pipelines import load_pipeline
from configs.loading.references import require_callables
from configs.schema.pipeline import Name
from tasks.processes import tensorflow_process
from tasks.samples import csv_samples, leakage, parquet_samples
from tasks.samples.factory_text import model_py, preprocess_py
from tasks.samples.guesses import Guess, guess
from tasks.samples.pipeline_text import estimator, pipeline_yaml
from tasks.samples.profiles import Sample

Source = Literal["tfrecord", "csv", "parquet", "estimator"]

console = Console(highlight=False)


def create(
    name: str, samples: Sequence[Path], source: Source | None, label: str | None, folder: Path | None,
    *, force: bool = False,
) -> int:  # fmt: skip
    """Make the pipeline's folder, which `slipway check` passes on, and say what was guessed.

    Nothing is left behind by an error. Nothing is overwritten; with `force`, only the files that it writes.
    """
    target = folder or Path("configs") / name
    _refuse(name, samples, target, force)
    files = [Path(os.path.abspath(sample.expanduser())) for sample in samples]
    guessed = guess(_profile(files, source), label)
    factory = source == "estimator"
    patterns = [_pattern(file, target) for file in files]
    written = {"pipeline.yaml": pipeline_yaml(name, guessed, patterns, factory), **_beside(guessed)}
    if factory:
        written["model.py"] = model_py(guessed)
    _put(target, written)
    _tell(guessed, target, written, factory)
    return 0


def _refuse(name: str, samples: Sequence[Path], target: Path, force: bool) -> None:
    """Raise ConfigError where the command cannot do what it says."""
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        expected = "expected lower-case letters, digits, - and _, at most 63"
        raise ConfigError(f"{name!r} is no name for a pipeline", expected) from None
    if target.exists() and not (target.is_dir() and (force or not any(target.iterdir()))):
        hint = "name another by --folder, or add --force to replace the files that init writes"
        raise ConfigError(f"{target} is there already: nothing is overwritten", hint)
    if not samples:
        raise ConfigError(
            "no sample: the features are guessed from one", "name a TFRecord, CSV or Parquet file"
        )
    for sample in samples:
        if not sample.expanduser().is_file():
            what = "a folder" if sample.is_dir() else "no such file"
            raise ConfigError(f"{sample}: {what}", "name files that hold a sample of the data")


def _profile(files: Sequence[Path], source: Source | None) -> Sample:
    kind = source if source in _PROFILES else files[0].suffix.lower().removeprefix(".")
    try:
        return _PROFILES.get(kind, _tfrecord_profile)(files)
    except OSError as error:
        raise SlipwayError(f"{error.filename}: {error.strerror}") from None


def _tfrecord_profile(files: Sequence[Path]) -> Sample:
    with tempfile.TemporaryDirectory(prefix="slipway-init-") as folder:
        return tensorflow_process.run(
            "profile",
            Sample,
            log=Path(folder) / "profile.log",
            arguments={"files": list(files)},
        )


_PROFILES: Mapping[str | None, Callable[[Sequence[Path]], Sample]] = {
    "csv": csv_samples.profile,
    "parquet": parquet_samples.profile,
    "tfrecord": _tfrecord_profile,
}


def _pattern(file: Path, target: Path) -> str:
    """Return the glob pattern of one file: relative to the YAML where both are below this folder."""
    here = Path.cwd()
    near = file.is_relative_to(here) and Path(os.path.abspath(target)).is_relative_to(here)
    return glob.escape(os.path.relpath(file, target) if near else str(file))


def _beside(guessed: Guess) -> dict[str, str]:
    """Return the text of each file that the YAML names, by its name: vocabularies, and new names."""
    files = {"preprocess.py": preprocess_py(guessed)} if guessed.renamed else {}
    for feature in guessed.used:
        if feature.vocabulary:
            assert feature.column is not None
            files[str(feature.column["of"]["file"])] = "".join(f"{word}\n" for word in feature.vocabulary)
    return files


def _put(target: Path, files: Mapping[str, str]) -> None:
    """Make the folder appear with all its files, after a check of them; by one rename."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise SlipwayError(f"{error.filename}: {error.strerror}", "name another by --folder") from None
    try:
        for name, text in files.items():
            (draft / name).write_text(text, encoding="utf-8")
        require_callables(load_pipeline(draft))
        draft.chmod(0o755)
        if target.is_dir() and any(target.iterdir()):
            for name in files:
                (draft / name).replace(target / name)
        else:
            draft.rename(target)
    except OSError as error:
        raise SlipwayError(f"{target}: {error.strerror}", "nothing was written") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _tell(guessed: Guess, target: Path, files: Mapping[str, str], factory: bool) -> None:
    sample, label = guessed.sample, guessed.label
    read = f"{sample.examples:,} examples" + ("" if sample.whole else " (the first of more)")
    console.print(f"read {read} from {len(sample.files)} file(s), {sample.format}\n", markup=False)
    if label.why.startswith("guessed"):
        console.print(
            f"label: {label.name}, {label.why}. Another: --label NAME\n", markup=False, soft_wrap=True
        )
    table = Table("feature", "is", "because", box=None, pad_edge=False, header_style="dim")
    table.add_row(Text(f"{label.name} (label)", "bold"), label.spec, Text(label.why))
    for feature in guessed.features:
        is_ = Text(_short(feature.spec) if feature.column else "left out", "" if feature.column else "yellow")
        table.add_row(Text(feature.name), is_, Text(feature.why))
    console.print(table)
    names = [feature.name for feature in guessed.used]
    for leak in leakage.leaks(sample.columns, label.name, label.task != "regression", names):
        console.print(Text.assemble(("\nleakage? ", "bold yellow"), leak.told(label.name)), soft_wrap=True)
    model = "model.py:build_estimator" if factory else estimator(guessed)
    bound = "at least" if "min" in label.threshold else "at most"
    gate = f"{label.metric} {bound} {next(iter(label.threshold.values())):g}: {label.threshold_why}"
    console.print(f"\nmodel: {model}\ngate: {gate}", markup=False, soft_wrap=True)
    if guessed.is_small:
        console.print(f"[yellow]{sample.examples} examples are too few to train on: bring more[/]")
    console.print(f"wrote {', '.join(str(target / name) for name in files)}", markup=False, soft_wrap=True)
    console.print(f"next: slipway check {target}; slipway run {target}", markup=False, soft_wrap=True)


def _short(spec: str | dict[str, object]) -> str:
    if isinstance(spec, str):
        return spec
    return f"{spec['dtype']}{spec.get('shape', '')}, optional"
