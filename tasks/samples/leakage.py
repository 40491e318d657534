"""Features that alone predict the label: most often they are made of it, or known only after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.samples.profiles import Value

_LEAST_EXAMPLES = 50
_LEAST_SHARE_EXPLAINED = 0.95
"""Of the errors that the commonest class makes, or of the label's variance."""
_LEAVES = 256
_FEW_CLASSES = 100


@dataclass(frozen=True)
class Leak:
    """A feature that alone predicts the label, measured on examples that it was not fitted to."""

    feature: str
    score: float
    """Share of examples whose class it predicts, or of the label's variance that it explains."""
    without: float
    """The same of always predicting the commonest class; 0 for a quantity."""
    examples: int
    is_class: bool

    def told(self, label: str) -> str:
        """Return the warning in a sentence."""
        if self.is_class:
            found = (
                f"predicts {label} in {self.score:.1%} of {self.examples:,} examples (the commonest class: "
                f"{self.without:.1%})"
            )
        else:
            found = f"explains {self.score:.1%} of the variance of {label} in {self.examples:,} examples"
        return (
            f"{self.feature} alone {found}. If it is made of {label}, or known only after it, remove it from "
            "data.features: the model would learn nothing else"
        )


def leaks(
    columns: Mapping[str, Sequence[Value | None]], label: str, is_class: bool, features: Sequence[str]
) -> list[Leak]:
    """Return the features of which each alone predicts the label, the best first.

    `columns` holds one value an example, None where it has none or several. Each feature is fitted to every
    second example, by a decision tree, or for words by the commonest class of each, and measured on the rest.
    """
    found = [
        leak for name in features
        if name in columns and (leak := _leak(name, columns[name], columns.get(label, ()), is_class))
    ]  # fmt: skip
    return sorted(found, key=lambda leak: -leak.score)


def _leak(name: str, values: Sequence[Any], labels: Sequence[Any], is_class: bool) -> Leak | None:
    pairs = [
        (value, truth) for value, truth in zip(values, labels, strict=False) if None not in (value, truth)
    ]
    fitted, asked = pairs[::2], pairs[1::2]
    if len(pairs) < _LEAST_EXAMPLES or len({truth for _, truth in pairs}) < 2:  # noqa: PLR2004
        return None
    predicted = (
        _by_words(fitted, asked) if isinstance(pairs[0][0], str) else _by_tree(fitted, asked, is_class)
    )
    if predicted is None:
        return None
    truths = [truth for _, truth in asked]
    if is_class:
        without = Counter(truths).most_common(1)[0][1] / len(truths)
        score = sum(map(_same, predicted, truths)) / len(truths)
        explained = (score - without) / (1 - without) if without < 1 else 0.0
    else:
        without, score = 0.0, _explained(predicted, truths)
        explained = score
    return Leak(name, score, without, len(asked), is_class) if explained >= _LEAST_SHARE_EXPLAINED else None


def _same(one: Any, other: Any) -> bool:
    return bool(one == other)


def _by_words(fitted: Sequence[tuple[Any, Any]], asked: Sequence[tuple[Any, Any]]) -> list[Any] | None:
    """Predict the commonest label of each word; None for a quantity, whose mean it would be."""
    by_word: dict[Any, Counter[Any]] = {}
    for word, truth in fitted:
        by_word.setdefault(word, Counter())[truth] += 1
    commonest = Counter(truth for _, truth in fitted).most_common(1)[0][0]
    if len(by_word) > len(fitted) / 2:
        return None  # an identifier: it repeats nothing
    best = {word: counts.most_common(1)[0][0] for word, counts in by_word.items()}
    return [best.get(word, commonest) for word, _ in asked]


def _by_tree(
    fitted: Sequence[tuple[Any, Any]], asked: Sequence[tuple[Any, Any]], is_class: bool
) -> list[Any] | None:
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    if is_class and len({truth for _, truth in fitted}) > _FEW_CLASSES:
        return None
    tree = (DecisionTreeClassifier if is_class else DecisionTreeRegressor)(
        max_leaf_nodes=_LEAVES, min_samples_leaf=2, random_state=0
    )
    try:
        tree.fit([[float(value)] for value, _ in fitted], [truth for _, truth in fitted])
        return list(tree.predict([[float(value)] for value, _ in asked]).tolist())
    except ValueError:
        return None  # values beyond float32


def _explained(predicted: Sequence[float], truths: Sequence[float]) -> float:
    """Return the coefficient of determination, R²."""
    if any(isinstance(truth, str) for truth in truths):
        return 0.0
    mean = sum(truths) / len(truths)
    total = sum((truth - mean) ** 2 for truth in truths)
    errors = sum((truth - guess) ** 2 for guess, truth in zip(predicted, truths, strict=True))
    return 1 - errors / total if total else 0.0
