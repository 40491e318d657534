"""From profiles to a pipeline: what each feature is, how a canned Estimator sees it, and why."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tasks.core.errors import ConfigError, DataError
from tasks.samples.profiles import FeatureProfile, Sample, Value

Task = Literal["binary", "classes", "regression"]

LABEL_NAMES = ("label", "labels", "target", "class", "y", "outcome")
_MOST_CLASSES = 100
_INLINE_WORDS = 12
_ONE_HOT_WORDS = 50
_FEW, _SOME = 50, 1_000
"""Examples below which a sample is too small to train on, or to hold out only a little of it."""
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?\Z")
_SCOPE = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*\Z")  # tf.name_scope's: feature columns are named so
_ID_NAME = re.compile(r"(.*[_\W])?(id|uuid|guid)\Z", re.IGNORECASE)
_TIME_NAME = re.compile(r"(.*[_\W])?(at|date|time|timestamp|ts)\Z", re.IGNORECASE)
_WORDS_OF_A_CATEGORY = 4
"""A column whose distinct values have more words on average is free text."""
_LEAST_TIMESTAMP = 100_000_000
"""Seconds since 1970: March 1973."""
_STEPS = 1_000


@dataclass(frozen=True)
class FeatureGuess:
    """What is made of one feature."""

    profile: FeatureProfile
    seen: str
    """Name by which the model sees it: feature columns take no spaces, for one."""
    spec: str | dict[str, Any]
    """As `data.features` takes it."""
    column: dict[str, Any] | None
    """As `model.feature_columns` takes it; None where the feature is left out."""
    why: str
    vocabulary: tuple[str, ...] = ()
    """Words for the vocabulary file that `column` names."""

    @property
    def name(self) -> str:
        """Name of the feature in the data."""
        return self.profile.name


@dataclass(frozen=True)
class LabelGuess:
    """What is predicted, and how."""

    name: str
    spec: str
    task: Task
    why: str
    metric: str
    threshold: dict[str, float]
    """As `evaluation.thresholds` takes it."""
    threshold_why: str
    classes: int = 2
    words: tuple[str, ...] = ()
    """Classes that are words in the data; none where they are numbers from 0."""
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Guess:
    """A pipeline for the sample."""

    sample: Sample
    features: tuple[FeatureGuess, ...]
    label: LabelGuess

    @property
    def used(self) -> tuple[FeatureGuess, ...]:
        """The features that the model sees."""
        return tuple(feature for feature in self.features if feature.column is not None)

    @property
    def renamed(self) -> dict[str, str]:
        """Names that feature columns do not take, and what the model sees in their place."""
        return {each.name: each.seen for each in self.used if each.name != each.seen}

    @property
    def batch_size(self) -> int:
        """Examples a step: several steps an epoch even of a small sample."""
        return 32 if self.sample.examples < 10_000 else 128  # noqa: PLR2004

    @property
    def learning_rate(self) -> float:
        """Adam's, whose steps are about as long as this."""
        if self.label.task != "regression":
            return 0.003
        return _round(self.label.std / 20, 1)

    @property
    def max_steps(self) -> int:
        """Enough steps for a linear model's bias to get to the label's mean, and as many again to settle."""
        if self.label.task != "regression":
            return _STEPS
        needed = 3 * abs(self.label.mean) / self.learning_rate
        return min(20 * _STEPS, _STEPS * math.ceil(needed / _STEPS) or _STEPS)

    @property
    def split(self) -> dict[str, float]:
        """Shares held out: larger ones of a small sample, so that a metric of them means something."""
        if self.sample.examples < _SOME:
            return {"eval": 0.3, "sample": 0.15}
        return {"eval": 0.2, "sample": 0.05}

    @property
    def is_small(self) -> bool:
        """Whether the sample is too small to train on."""
        return self.sample.examples < _FEW


def guess(sample: Sample, label: str | None = None) -> Guess:
    """Return what Slipway makes of the sample.

    `label` names the feature to predict. Raises ConfigError where it is not there or cannot be guessed,
    DataError where it cannot be learned.
    """
    target, why = _label(sample, label)
    predicted = _predicted(target, sample, why)
    seen = _seen_names([each.name for each in sample.features])
    features = tuple(
        _feature(each, seen[each.name], sample.examples) for each in sample.features if each is not target
    )
    made = Guess(sample, features, predicted)
    if not made.used:
        left = "; ".join(f"{each.name}: {each.why}" for each in features) or "there is none besides the label"
        raise ConfigError(f"no feature is left to learn from: {left}", "give a sample that has more")
    return made


def _seen_names(names: Sequence[str]) -> dict[str, str]:
    """Return for each name one, like it and unique, that tf.name_scope takes."""
    seen: dict[str, str] = {name: name for name in names if _SCOPE.match(name)}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or "feature"
        numbered = (f"{plain}_{number}" for number in itertools.count(2))
        taken = set(seen.values())
        seen.setdefault(name, next(each for each in itertools.chain([plain], numbered) if each not in taken))
    return seen


def _label(sample: Sample, name: str | None) -> tuple[FeatureProfile, str]:
    by_name = {feature.name: feature for feature in sample.features}
    if name is not None:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(by_name)}"
            raise ConfigError(f"--label {name!r}: the sample has no such feature", hint)
        return by_name[name], "asked for"
    for feature in sample.features:
        if feature.name.lower() in LABEL_NAMES:
            return feature, "guessed by its name"
    if sample.format != "tfrecord":  # whose examples have no order of features
        for feature in reversed(sample.features):
            if _may_be_label(feature):
                last = feature is sample.features[-1]
                return feature, "guessed: the last column" + ("" if last else " that could be one")
    message = f"which feature is the label? The examples have {', '.join(by_name)}"
    raise ConfigError(message, "name it by --label")


def _may_be_label(feature: FeatureProfile) -> bool:
    """Return whether a column is worth predicting: no text, identifier, time, constant or list."""
    if not feature.is_scalar or _left_out(feature) is not None:
        return False
    if feature.dtype == "string":
        return 0 < len(feature.values) <= _MOST_CLASSES
    named = _ID_NAME.match(feature.name) or (
        _TIME_NAME.match(feature.name) and feature.low >= _LEAST_TIMESTAMP
    )
    return not named


def _predicted(label: FeatureProfile, sample: Sample, why: str) -> LabelGuess:
    place = f"the label {label.name!r}"
    if label.present < sample.examples:
        missing = f"{sample.examples - label.present:,} of {sample.examples:,} examples, first in"
        message = f"{place} is missing in {missing} {label.first_missing}"
        raise DataError(message, "fill it, remove these examples, or name another by --label")
    if not label.is_scalar:
        message = f"{place} has {label.shortest} to {label.longest} values an example, expected one"
        raise DataError(message, "canned Estimators predict one; name another by --label")
    if label.not_finite:
        raise DataError(f"{place} is NaN or infinite in {label.not_finite:,} examples", "remove them")
    if len(label.values) == 1:
        raise DataError(f"{place} is {label.values[0]!r} in every example", "name another by --label")
    return _of_words(label, why) if label.dtype == "string" else _of_numbers(label, why)


def _of_words(label: FeatureProfile, why: str) -> LabelGuess:
    words = tuple(map(str, label.values))
    if not words or len(words) > _MOST_CLASSES:
        how_many = f"{len(words)}" if words else "too many"
        message = f"the label {label.name!r} is text with {how_many} distinct values: no classes"
        raise DataError(message, f"classes are at most {_MOST_CLASSES}; name another by --label")
    return _classes(label, why, len(words), words)


def _of_numbers(label: FeatureProfile, why: str) -> LabelGuess:
    values = [value for value in label.values if isinstance(value, int | float)]
    whole = all(float(value).is_integer() for value in values)
    # BinaryClassHead takes floats, MultiClassHead integers only.
    counted = whole and (label.dtype == "int64" or values == [0.0, 1.0])
    if values and counted and values[0] >= 0 and values[-1] < _MOST_CLASSES and len(values) > values[-1] / 2:
        return _classes(label, why, max(2, int(values[-1]) + 1), ())
    variance = label.std**2
    return LabelGuess(
        label.name, label.dtype, "regression", f"{why}; an amount, {_span(label)}",
        "average_loss", {"max": _round(variance, 4)},
        "mean squared error; always saying the mean of the sample has this one",
        mean=label.mean, std=label.std or 1.0,
    )  # fmt: skip


def _classes(label: FeatureProfile, why: str, classes: int, words: tuple[str, ...]) -> LabelGuess:
    shown = ", ".join(map(str, label.values[:5])) + (" …" if len(label.values) > 5 else "")  # noqa: PLR2004
    why = _one_line(f"{why}; {len(label.values)} classes: {shown}")
    if classes == 2:  # noqa: PLR2004
        return LabelGuess(
            label.name, label.dtype, "binary", why,
            "auc", {"min": 0.6}, "guessing at random has 0.5", words=words,
        )  # fmt: skip
    share = label.words[0][1] / label.present if label.words else 0.0
    commonest = math.floor(share * 100) / 100
    return LabelGuess(
        label.name, label.dtype, "classes", why,
        "accuracy", {"min": commonest}, "always saying the commonest class of the sample has this one",
        classes, words,
    )  # fmt: skip


def _feature(feature: FeatureProfile, seen: str, examples: int) -> FeatureGuess:
    missing = examples - feature.present
    spec = _spec(feature, missing)
    if (reason := _left_out(feature)) is not None:
        return FeatureGuess(feature, seen, spec, None, _one_line(reason))
    make = _word_column if feature.dtype == "string" else _number_column
    column, vocabulary, why = make(feature, seen)
    if missing:
        default = f"; then {spec['default']!r}" if isinstance(spec, dict) else ""
        why += f"; missing in {missing / examples:.0%}{default}"
    return FeatureGuess(feature, seen, spec, column, _one_line(why), vocabulary)


def _spec(feature: FeatureProfile, missing: int) -> str | dict[str, Any]:
    if not feature.is_fixed:
        return f"{feature.dtype}[]"
    short = feature.dtype if feature.is_scalar else f"{feature.dtype}[{feature.longest}]"
    if not missing:
        return short
    shape = {} if feature.is_scalar else {"shape": [feature.longest]}
    return {"dtype": feature.dtype, **shape, "default": _default(feature)}


def _default(feature: FeatureProfile) -> Value:
    """Return what stands for a missing value: the mean, or the empty string, which is no word."""
    if feature.dtype == "string":
        return ""
    return round(feature.mean) if feature.dtype == "int64" else _round(feature.mean, 6)


def _left_out(feature: FeatureProfile) -> str | None:  # noqa: PLR0911 (a reason a line)
    """Return why a canned Estimator should not use the feature; None if it may."""
    values, scalar = feature.values, feature.is_scalar
    if feature.binary:
        return "bytes that are no text (an image?): model.preprocess could decode them"
    if feature.not_finite:
        return f"{feature.not_finite:,} values are NaN or infinite: clean them first"
    if feature.note:
        return feature.note
    if len(values) == 1:
        return f"{values[0]!r} wherever it is: nothing to learn from"
    if not feature.is_fixed and feature.dtype == "float32":
        return (
            f"{feature.shortest} to {feature.longest} numbers an example: feature columns take a fixed number"
        )
    if scalar and feature.dtype == "string" and values and all(_DATE.match(str(value)) for value in values):
        return f"dates ({values[0]} … {values[-1]}): make numbers of them, such as days since"
    return (_free_text(feature) or _identifier(feature)) if scalar else None


def _free_text(feature: FeatureProfile) -> str | None:
    """Say so if the values are sentences."""
    words = [len(str(value).split()) for value in feature.values if feature.dtype == "string"]
    if not words or sum(words) <= _WORDS_OF_A_CATEGORY * len(words):
        return None
    return f"free text, up to {max(words)} words: model.preprocess could make features of it"


def _identifier(feature: FeatureProfile) -> str | None:
    """Say so if the values are names that hardly any example shares, not amounts."""
    if feature.distinct is None or feature.present < _FEW:
        return None
    if feature.dtype != "string" and _ID_NAME.match(feature.name) is None:
        return None
    if feature.distinct == feature.present:
        return "a value of its own in every example: an identifier, or free text"
    if feature.dtype == "string" and 2 * feature.distinct > feature.present:
        return f"{feature.distinct:,} values in {feature.present:,} examples: too few share one"
    return None


def _number_column(feature: FeatureProfile, seen: str) -> tuple[dict[str, Any], tuple[str, ...], str]:
    if not feature.is_fixed:
        return _hashed(
            feature, seen, f"{feature.shortest} to {feature.longest} integers an example: taken for ids"
        )
    if feature.dtype == "int64" and feature.is_scalar and _ID_NAME.match(feature.name):
        return _hashed(feature, seen, f"{feature.distinct or 'many'} numbers that are names: taken for ids")
    column = {
        "kind": "numeric", "key": seen,
        "mean": _round(feature.mean, 4), "std": _round(feature.std, 4) or 1.0,
    }  # fmt: skip
    several = "" if feature.is_scalar else f"{feature.longest} values, "
    few = f", {len(feature.values)} distinct" if 0 < len(feature.values) <= _INLINE_WORDS else ""
    whole = "whole numbers, " if feature.dtype == "int64" else ""
    return column, (), f"{several}{whole}{_span(feature)}{few}"


def _word_column(feature: FeatureProfile, seen: str) -> tuple[dict[str, Any], tuple[str, ...], str]:
    words = tuple(str(word) for word in feature.values if word)
    how_many = "" if feature.is_scalar else f"{feature.shortest} to {feature.longest} of "
    if not words or any(set(word) & set("\n\r\0") or word != word.strip() for word in words):
        return _hashed(feature, seen, f"{how_many}many words")
    inline = len(words) <= _INLINE_WORDS
    file = f"{seen.replace('/', '_')}.txt"
    source: dict[str, Any] = {"values": list(words)} if inline else {"file": file}
    of = {"kind": "vocabulary", "key": seen, **source, "num_oov_buckets": 1}
    shown = ", ".join(words) if inline else f"listed in {file}"
    return _dense(of, len(words)), () if inline else words, f"{how_many}{len(words)} words: {shown}"


def _hashed(feature: FeatureProfile, seen: str, why: str) -> tuple[dict[str, Any], tuple[str, ...], str]:
    buckets = 2 ** math.ceil(math.log2(2 * (feature.distinct or 4_096)))
    of = {"kind": "hash_bucket", "key": seen, "buckets": max(16, buckets)}
    return _dense(of, of["buckets"]), (), why


def _dense(of: dict[str, Any], words: int) -> dict[str, Any]:
    """Return a column that a DNN takes: one-hot for few words, for more a vector each."""
    if words <= _ONE_HOT_WORDS:
        return {"kind": "indicator", "of": of}
    return {"kind": "embedding", "of": of, "dimension": math.ceil(words**0.25)}


def _one_line(text: str) -> str:
    """Return a text, with words of the user's in it, as it may stand in a comment."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _span(feature: FeatureProfile) -> str:
    return f"{_round(feature.low, 4):g} to {_round(feature.high, 4):g}"


def _round(number: float, digits: int) -> float:
    return float(f"{number:.{digits}g}")
