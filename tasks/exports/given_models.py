"""`model.saved_model`: a SavedModel that was trained elsewhere, TensorFlow 1's or 2's, Keras included.

The run works on a copy of it in its folder: the original may be replaced meanwhile.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from configs.loading.given_model import found_in
from configs.schema.pipeline import AnswersConfig, DataConfig, ModelConfig
from tasks.answers import offline_answers
from tasks.answers.comparison import Arrays
from tasks.answers.request_inputs import request_inputs
from tasks.core.artifacts import Checkpoint, Examples, Run, Signature
from tasks.core.errors import ModelError
from tasks.examples.tf_examples import read_records, write_records
from tasks.exports import row_independence, saved_models
from tasks.exports.saved_models import form
from tasks.exports.serving_inputs import RAW, require_askable
from tasks.exports.signature_runs import SignatureRun

ANSWERED_BY = "the SavedModel itself"
_NOT_TAKEN = ("assets.extra/manifest.json", "assets.extra/answers")
"""What another run of Slipway may have left there."""


def source(model: ModelConfig, run: Run) -> Path:
    """Return the folder that `model.saved_model` means. Raises ModelError if it holds no SavedModel."""
    path = run.source / Path(str(model.saved_model)).expanduser()
    found = found_in(path)
    if found is None:
        raise ModelError(
            f"model.saved_model: no SavedModel in {path}", "name a folder that holds saved_model.pb"
        )
    return found


def copied(run: Run) -> Path:
    """Return where the run keeps its copy."""
    return run.folder / "saved_model"


def take(model: ModelConfig, run: Run) -> Checkpoint:
    """Copy the SavedModel into the run's folder; its variables are the checkpoint."""
    origin, copy = source(model, run), copied(run)
    shutil.rmtree(copy, ignore_errors=True)
    partial = copy.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(origin, partial)
    partial.rename(copy)
    return Checkpoint(copy / "variables" / "variables", 0, None, None, given=origin)


def digest(saved_model: Path) -> str:
    """Return the SHA-256 of the SavedModel's files, their names included."""
    found = hashlib.sha256()
    for file in sorted(each for each in saved_model.rglob("*") if each.is_file()):
        name = file.relative_to(saved_model).as_posix()
        if not name.startswith("assets.extra/"):
            found.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def signatures(saved_model: Path, data: DataConfig) -> tuple[Signature, ...]:
    """Return what it serves. Raises ModelError for a signature that tf.Examples of `data` cannot be put to.

    A signature takes serialized tf.Examples, or dense features by their names.
    """
    definitions = saved_models.serving_signature_defs(saved_model)
    if not definitions:
        tags = "; ".join(saved_models.tag_sets(saved_model))
        raise ModelError(f"{saved_model} has no signature tagged serve, found the tags {tags}", "export one")
    raw = [name for name, each in definitions.items() if not _takes_examples(each, data)]
    dependences = row_independence.dependences(saved_model)
    found = saved_models.signatures(saved_model, raw)
    for each in found:
        if each.receiver == RAW:
            require_askable(each.name, each.inputs, data.features)
    return tuple(replace(each, row_independent=not dependences[each.name]) for each in found)


def _takes_examples(definition: Any, data: DataConfig) -> bool:
    """Return whether the one input is a string an example, under a name that no feature has."""
    ((alias, info), *more) = definition.inputs.items()
    return not more and alias not in data.features and form(info) in ("string[?]", "string[...]")


class Loaded:
    """A SavedModel in a session, as a server loads it."""

    def __init__(self, session: Any, definitions: Mapping[str, Any], asked: Sequence[Signature]) -> None:
        self._session, self._definitions = session, definitions
        self.signatures = tuple(asked)

    def run(self, signature: Signature, inputs: Arrays) -> SignatureRun:
        """Return the signature, ready to be run on these examples."""
        return SignatureRun(self._session, signature.name, self._definitions[signature.name], inputs)


@contextmanager
def loaded(saved_model: Path, asked: Sequence[Signature], session_config: Any) -> Iterator[Loaded]:
    """Load it for the block. Its graph does not become the current one: examples can be parsed meanwhile."""
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph, config=session_config)
    try:
        with graph.as_default():
            meta = tf.compat.v1.saved_model.loader.load(session, [saved_models.SERVE], str(saved_model))
        yield Loaded(session, meta.signature_def, asked)
    finally:
        session.close()


def predict_samples(
    saved_model: Path, asked: Sequence[Signature], answers: AnswersConfig, examples: Examples,
    data: DataConfig, folder: Path, session_config: Any,
) -> tuple[int, dict[str, dict[int, dict[str, Any]]]]:  # fmt: skip
    """Write the sample examples into an empty `folder`, and run every signature on them in every batch size.

    Returns the number of samples, and the answers by signature, batch size and output.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    records = read_records(examples.sample.files, limit=answers.samples)
    write_records(offline_answers.examples_file(folder), records)
    found: dict[str, dict[int, dict[str, Any]]] = {}
    inputs = {each.name: request_inputs(each, records, data.features) for each in asked}
    with loaded(saved_model, asked, session_config) as model:
        for each in asked:
            ready = model.run(each, inputs[each.name])
            found[each.name] = {
                size: dict(ready.whole([part for _, part in ready.batches(size)]))
                for size in answers.sizes(len(records))
            }
    return len(records), found


def write(saved_model: Path, folder: Path) -> Path:
    """Copy the SavedModel under `folder`; return where. A manifest of an earlier run stays behind."""
    target = folder / "model"
    shutil.copytree(saved_model, target)
    for name in _NOT_TAKEN:
        path = target / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return target


def variables(saved_model: Path) -> dict[str, Any]:
    """Return name to dtype of its variables; {} if it has none."""
    prefix = saved_model / "variables" / "variables"
    if not prefix.with_suffix(".index").is_file():
        return {}
    return dict(tf.train.load_checkpoint(str(prefix)).get_variable_to_dtype_map())
