"""One measured run, in a process of its own: `python benchmarks/training_runs.py '{"kind": "ours", …}'`.

`ours` and `bare` train; `input` times both input pipelines, which take turns. Prints a line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.loading.pipelines import Pipeline, load_pipeline
from tasks.core.artifacts import Checkpoint, Examples, Run, Split
from tasks.processes import tensorflow_process

DIGITS = Path(__file__).resolve().parents[1] / "configs" / "digits"
TURNS = 12
"""Blocks of batches that each input pipeline is timed for, after one to warm up."""


def digits(steps: int) -> Pipeline:
    """Return the digits, trained for so many steps: model, batch size and cadence of both sides."""
    overrides = {"training.max_steps": steps, "training.accelerator": "cpu"}
    return load_pipeline(DIGITS, overrides)


def ours(folder: Path, files: Sequence[Path], pipeline: Pipeline) -> dict[str, Any]:
    """Train as the stage does: the program `train` in its child, with hooks, progress and checkpoints."""
    none, config = Split((), 0), pipeline.config
    tensorflow_process.run(
        "train", Checkpoint, log=folder / "train.log",
        arguments={
            "model": config.model, "training": config.training, "data": config.data,
            "examples": Examples(Split(tuple(files), 0), none, none, digest=""), "run": _run(folder),
        },
    )  # fmt: skip
    return _usage(resource.RUSAGE_CHILDREN)


def bare(folder: Path, files: Sequence[Path], pipeline: Pipeline) -> dict[str, Any]:
    """Train the same Estimator by its own method, on make_batched_features_dataset."""
    from tasks.estimators import accelerators, assembly

    config = pipeline.config
    session_config = accelerators.claim(config.training.accelerator)
    estimator = assembly.build(config.model, config.training, config.data, _run(folder), session_config)
    estimator.train(lambda: bare_batches(files, pipeline), max_steps=config.training.max_steps)
    return _usage(resource.RUSAGE_SELF)


def _run(folder: Path) -> Run:
    return Run("digits", folder.name, folder, DIGITS, folder / "models")


def _usage(who: int) -> dict[str, float]:
    used = resource.getrusage(who)
    return {"peak_mib": used.ru_maxrss / 1024, "cpu_seconds": used.ru_utime + used.ru_stime}


def bare_batches(files: Sequence[Path], pipeline: Pipeline) -> Any:
    """Return what TensorFlow's own function makes of the files; shuffled alike, all else its defaults."""
    import tensorflow as tf

    from tasks.examples.tf_examples import examples_spec, parsing_spec

    data, training = pipeline.config.data, pipeline.config.training
    return tf.data.experimental.make_batched_features_dataset(
        [str(file) for file in files], training.batch_size, parsing_spec(examples_spec(data)),
        label_key=next(iter(data.label)), shuffle_buffer_size=training.shuffle_buffer,
        shuffle_seed=training.seed,
    )  # fmt: skip


def input_alone(files: Sequence[Path], pipeline: Pipeline, batches: int) -> dict[str, Any]:
    """Return batches/s of every block of both input pipelines, nothing trained on them."""
    from tasks.examples.tf_examples import training_batches

    config = pipeline.config
    mine = _blocks(training_batches(files, config.data, config.training), batches)
    theirs = _blocks(bare_batches(files, pipeline), batches)
    paces = [(next(mine), next(theirs)) for _ in range(TURNS + 1)][1:]
    return {"ours": [pace for pace, _ in paces], "bare": [pace for _, pace in paces]}


def _blocks(dataset: Any, batches: int) -> Iterator[float]:
    import tensorflow as tf

    @tf.function  # type: ignore[untyped-decorator]
    def read(iterator: Any) -> None:
        for _ in tf.range(batches):
            iterator.get_next()

    iterator = iter(dataset)
    while True:
        started = time.perf_counter()
        read(iterator)
        yield batches / (time.perf_counter() - started)


def main(asked: dict[str, Any]) -> None:
    """Run what is asked for, and print its numbers as the last line."""
    files = [Path(file) for file in asked["files"]]
    pipeline = digits(asked["steps"])
    if asked["kind"] == "input":
        measured = input_alone(files, pipeline, asked["steps"])
    else:
        folder = Path(asked["folder"])
        measured = {"ours": ours, "bare": bare}[asked["kind"]](folder, files, pipeline)
    sys.stdout.write(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
