"""One measured run, in a process of its own: `python benchmarks/training_runs.py '{"kind": "ours", …}'`.

`ours` and `bare` train; `input` times both input pipelines, and `turns` both trainings, which take turns.
Prints a line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.loading import Pipeline, load_pipeline
from tasks import tensorflow_process
from tasks.artifacts import Checkpoint, Examples, Run, Split

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
        "train", Checkpoint, log=folder / "train.log", prepare_next=False,
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


def in_turns(files: Sequence[Path], pipeline: Pipeline, steps: int) -> dict[str, Any]:
    """Return steps/s of every block of both trainings, which take turns in this process.

    Each is a session of its own with the model, the input and the hooks of its side; no checkpoints.
    """
    from tasks.estimators.training_hooks import ReportProgress, StopOnSigterm
    from tasks.examples.tf_examples import training_batches

    training = pipeline.config.training
    hooks = [ReportProgress(tensorflow_process.ignore_progress, training), StopOnSigterm()]
    mine = _steps(lambda: training_batches(files, pipeline.config.data, training), pipeline, hooks, steps)
    theirs = _steps(lambda: bare_batches(files, pipeline), pipeline, [], steps)
    warm_up = 5
    paces = [(next(mine), next(theirs)) for _ in range(warm_up + 3 * TURNS)][warm_up:]
    return {"ours": [pace for pace, _ in paces], "bare": [pace for _, pace in paces]}


def _steps(
    batches: Callable[[], Any], pipeline: Pipeline, hooks: Sequence[Any], steps: int
) -> Iterator[float]:
    """Yield steps/s of block after block of training on `batches`."""
    session, fetched = _training(batches, pipeline, hooks)
    while True:
        for step in range(-steps // 5, steps):  # in the first ones the other side's input fills its buffers
            if step == 0:
                started = time.perf_counter()
            session.run(fetched)
        yield steps / (time.perf_counter() - started)


def _training(batches: Callable[[], Any], pipeline: Pipeline, hooks: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Return a session that trains as the Estimator's does, and what a step runs."""
    import tensorflow as tf

    from tasks.estimators import accelerators, assembly

    tf1, config = tf.compat.v1, pipeline.config
    with tf.Graph().as_default() as graph:
        tf1.set_random_seed(config.training.seed)
        tf1.train.create_global_step(graph)
        session_config = accelerators.claim(config.training.accelerator)
        nowhere = _run(Path("not-written"))
        estimator = assembly.build(config.model, config.training, config.data, nowhere, session_config)
        iterator = tf1.data.make_initializable_iterator(batches())
        tf1.add_to_collection(tf1.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
        spec = estimator._call_model_fn(*iterator.get_next(), "train", estimator.config)
        tf1.add_to_collection(tf1.GraphKeys.LOSSES, spec.loss)
        creator = tf1.train.ChiefSessionCreator(config=session_config)
        return tf1.train.MonitoredSession(creator, hooks), [spec.train_op, spec.loss]


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
    pipeline = digits(asked.get("max_steps", asked["steps"]))
    if asked["kind"] in ("input", "turns"):
        measured = {"input": input_alone, "turns": in_turns}[asked["kind"]](files, pipeline, asked["steps"])
    else:
        folder = Path(asked["folder"])
        measured = {"ours": ours, "bare": bare}[asked["kind"]](folder, files, pipeline)
    sys.stdout.write(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
