"""`make bench-training`: what training through Slipway costs, beside the same Estimator called bare.

Both train the digits' DNNClassifier on the same TFRecords with the same RunConfig, each run in a process of
its own, taking turns (A/B/A/B …), so that a noisy machine is as noisy for both. The pace is taken from the
event files that Estimators themselves write, from the warm-up's last step to the last one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RUNS = Path(__file__).with_name("training_runs.py")
DISTINCT = 10_000
"""Examples that differ; larger sets repeat them, as neither side looks at what is in them."""


@dataclass
class Pair:
    """What was measured of both sides, a number a round."""

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)

    def ratio(self) -> str:
        """Return the median of the ratios of each round, and between which two they lie."""
        ratios = sorted(mine / theirs for mine, theirs in zip(self.ours, self.bare, strict=True))
        return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} … {ratios[-1]:.3f})"


def write_examples(folder: Path, examples: int) -> Path:
    """Write a TFRecord file of digit-like tf.Examples: 64 floats and a label each."""
    import tensorflow as tf

    chance = random.Random(1)  # noqa: S311 (made-up pixels)
    records = [_record(chance) for _ in range(min(examples, DISTINCT))]
    file = folder / f"{examples}.tfrecord"
    with tf.io.TFRecordWriter(str(file)) as writer:
        for number in range(examples):
            writer.write(records[number % DISTINCT])
    return file


def _record(chance: random.Random) -> bytes:
    import tensorflow as tf

    pixels = tf.train.FloatList(value=[chance.random() for _ in range(64)])
    label = tf.train.Int64List(value=[chance.randrange(10)])
    feature = {"pixels": tf.train.Feature(float_list=pixels), "label": tf.train.Feature(int64_list=label)}
    return bytes(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def measured(**asked: Any) -> dict[str, Any]:
    """Return the numbers of one run in a process of its own."""
    process = subprocess.run([sys.executable, RUNS, json.dumps(asked, default=str)], capture_output=True,
                             text=True, check=False)  # fmt: skip
    if process.returncode:
        raise SystemExit(f"{asked} failed:\n{process.stderr[-3000:]}")
    return dict(json.loads(process.stdout.splitlines()[-1]))


def steps_per_second(model_dir: Path, warm_up: int) -> float:
    """Return the pace after the warm-up, checkpoints included, by the clock of the event files."""
    times = sorted((event.step, event.wall_time) for event in _events(model_dir) if event.step >= warm_up)
    (first, began), (last, ended) = times[0], times[-1]
    return float((last - first) / (ended - began))


def _events(model_dir: Path) -> Iterator[Any]:
    import tensorflow as tf

    for file in model_dir.glob("events.out.tfevents.*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            if any(value.tag == "global_step/sec" for value in event.summary.value):
                yield event


def train_in_turns(folder: Path, file: Path, options: argparse.Namespace) -> tuple[Pair, Pair, Pair]:
    """Return steps/s, peak MiB and CPU seconds of both sides, a number a round."""
    paces, memory, cpu = Pair(), Pair(), Pair()
    for number in range(options.rounds):
        for kind in ("ours", "bare"):
            run = folder / f"{kind}-{number}"
            run.mkdir()
            said = measured(kind=kind, folder=run, files=[file], steps=options.steps)
            getattr(paces, kind).append(steps_per_second(run / "checkpoints", options.warm_up))
            getattr(memory, kind).append(said["peak_mib"])
            getattr(cpu, kind).append(said["cpu_seconds"])
    return paces, memory, cpu


def report(console: Console, title: str, rows: Sequence[tuple[str, Pair, str]]) -> None:
    """Print a row for each pair: medians of both sides, and the ratio with its spread."""
    table = Table(title=title, title_justify="left", show_edge=False)
    for name in ("", "Slipway", "bare", "ratio: median (least … most)", "target"):
        table.add_column(name, justify="left" if not name else "right")
    for name, pair, target in rows:
        medians = (f"{statistics.median(side):,.0f}" for side in (pair.ours, pair.bare))
        table.add_row(name, *medians, pair.ratio(), target)
    console.print(table)


def main() -> None:
    """Measure and print."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    options = _options()
    console = Console(width=110)
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as name:
        folder = Path(name)
        small = write_examples(folder, options.examples)
        paces, memory, cpu = train_in_turns(folder, small, options)
        inputs = Pair(**measured(kind="input", files=[small], steps=options.input_batches))
        large = write_examples(folder, options.large_examples)
        (folder / "large").mkdir()
        grown = measured(kind="ours", folder=folder / "large", files=[large], steps=options.steps)
    report(console, f"training, {options.rounds} rounds of {options.steps:,} steps", [
        ("steps/s", paces, "≥ 0.98"),
        ("examples/s", _times(paces, options.batch_size), "≥ 0.98"),
        ("input pipeline alone, batches/s", inputs, "≥ 1.00"),
        ("CPU seconds, imports and all", cpu, ""),
        ("peak memory, MiB", memory, ""),
    ])  # fmt: skip
    console.print(
        f"peak memory of the trainer: {statistics.median(memory.ours):,.0f} MiB at {options.examples:,} "
        f"examples, {grown['peak_mib']:,.0f} MiB at {options.large_examples:,}"
    )


def _times(pair: Pair, factor: int) -> Pair:
    return Pair([pace * factor for pace in pair.ours], [pace * factor for pace in pair.bare])


def _options() -> argparse.Namespace:
    from training_runs import digits

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--warm-up", type=int, default=1000, help="steps that are not timed")
    parser.add_argument("--input-batches", type=int, default=2000, help="batches in a block")
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--large-examples", type=int, default=1_000_000)
    options = parser.parse_args()
    options.batch_size = digits(options.steps).config.training.batch_size
    return options


if __name__ == "__main__":
    main()
