"""The `pipeline.yaml` of a guess, every guess with its reason beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from tasks.samples.guesses import FeatureGuess, Guess

_COMMENT_COLUMN = 44


def pipeline_yaml(name: str, guess: Guess, files: Sequence[str], factory: bool) -> str:
    """Return the text of the file; `files` are glob patterns for `data.files`.

    With `factory` the model is that of `model.py` beside it, else a canned Estimator.
    """
    sections = [
        _head(name, guess), _data(guess, files), _factory(guess) if factory else _canned(guess),
        _training(guess), _gates(guess), _DEPLOYMENT,
    ]  # fmt: skip
    return "\n".join("\n".join(lines) for lines in sections).rstrip() + "\n"


_DEPLOYMENT = [
    "# Ports on 127.0.0.1: 0 picks free ones and keeps them. Say 8500 and 8501 where clients expect them.",
    "deployment: {grpc_port: 0, rest_port: 0}",
]


def _head(name: str, guess: Guess) -> list[str]:
    sample = guess.sample
    read = f"{sample.examples:,} examples" + ("" if sample.whole else ", the first of more")
    return [
        f"# Made by `slipway init` from a sample ({read}). What it guessed says why: correct it.",
        "# Every key there is: configs/digits/pipeline.yaml and docs/reference/pipeline.md.",
        "",
        f"name: {name}  # of the pipeline, and of the model as it is served",
        "",
    ]


def _data(guess: Guess, files: Sequence[str]) -> list[str]:
    sample, label = guess.sample, guess.label
    split = guess.split
    return [
        "data:",
        "  # Tonight's files, as glob patterns: /data/*.csv, say. Every run reads all that match.",
        f"  files: {_flow(list(files))}",
        f"  format: {sample.format}",
        *(["  compression: gzip"] if sample.compression == "gzip" else []),
        *([f"  delimiter: {json.dumps(sample.delimiter)}"] if sample.delimiter != "," else []),
        *([f"  encoding: {sample.encoding}"] if sample.encoding != "utf-8" else []),
        "  features:",
        *_specs(guess.features),
        "  label:",
        _commented(f"    {_key(label.name)}: {label.spec}", label.why),
        f"  split: {_flow(split)}  # held out of {sample.examples:,} examples",
        "",
    ]


def _specs(features: Sequence[FeatureGuess]) -> Iterator[str]:
    """Yield a line for each feature; one that is left out is a comment, ready to be put back."""
    for feature in features:
        mark = "" if feature.column is not None else "# "
        spec = feature.spec if isinstance(feature.spec, str) else _flow(feature.spec)
        why = feature.why if feature.column is not None else f"left out: {feature.why}"
        yield _commented(f"    {mark}{_key(feature.name)}: {spec}", why)


def _canned(guess: Guess) -> list[str]:
    label = guess.label
    why = "DNNRegressor can bend" if label.task == "regression" else "see model.estimator in the reference"
    return [
        "model:",
        f"  estimator: {estimator(guess)}  # of tf.estimator; {why}",
        "  params:",
        *(f"    {key}: {_flow(value)}" for key, value in params(guess).items()),
        "  feature_columns:  # mean and std, of the sample, scale a number at training and at serving",
        *(f"    - {_flow(feature.column)}" for feature in guess.used),
        *_preprocess(guess),
        "",
    ]


def _preprocess(guess: Guess) -> list[str]:
    if not guess.renamed:
        return []
    return ["  preprocess: preprocess.py:rename  # feature columns do not take all of the data's names"]


def estimator(guess: Guess) -> str:
    """Return the canned Estimator to begin with."""
    return "LinearRegressor" if guess.label.task == "regression" else "DNNClassifier"


def params(guess: Guess) -> dict[str, Any]:
    """Return the arguments of that Estimator."""
    optimizer = {"optimizer": {"name": "Adam", "learning_rate": guess.learning_rate}}
    if guess.label.task == "regression":
        return optimizer
    words = {"label_vocabulary": list(guess.label.words)} if guess.label.words else {}
    return {"hidden_units": [32, 16], "n_classes": guess.label.classes, **words, **optimizer}


def _factory(guess: Guess) -> list[str]:
    return [
        "model:",
        "  factory: model.py:build_estimator  # a model_fn; model.py:build_canned is a canned Estimator",
        "  params: {hidden_units: [32, 16], learning_rate: 0.003}  # what the function gets as params",
        *_preprocess(guess),
        "",
    ]


def _training(guess: Guess) -> list[str]:
    return [
        "training:",
        f"  max_steps: {guess.max_steps}  # in all: raise it while the metrics still rise",
        f"  batch_size: {guess.batch_size}  # examples a step",
        "",
    ]


def _gates(guess: Guess) -> list[str]:
    label = guess.label
    return [
        "evaluation:",
        "  thresholds:  # a model that misses one is rejected (exit code 3); the version before serves on",
        f"    {label.metric}: {_flow(label.threshold)}  # {label.threshold_why}: ask for more",
        "",
        "",
    ]


def _commented(line: str, comment: str) -> str:
    """Return the line and a comment, which lines up with those of other short lines."""
    return f"{line:<{_COMMENT_COLUMN}}  # {comment}"


def _key(name: str) -> str:
    return _flow(name)


def _flow(value: Any) -> str:
    """Return the value as YAML in one line."""
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    line = text.removesuffix("...\n").strip()
    # A line break in a name: JSON, which is YAML too, escapes it.
    return json.dumps(value) if "\n" in line else line
