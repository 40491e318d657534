"""Which pictures a run leaves in its `pictures` folder. A picture that cannot be drawn fails no run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from tasks.core.artifacts import Picture, Run
from tasks.evaluations.answered import Answered
from tasks.evaluations.training_curves import Curves

_log = logging.getLogger(__name__)
_NOT_QUALITY = ("global_step", "checkpoint_path", "loss", "average_loss")


def of_evaluation(
    run: Run, trained: Curves, evaluated: Curves, answers: Sequence[Answered]
) -> tuple[Picture, ...]:
    """Draw the loss, each metric that was measured while training, and the answers beside the labels."""
    return tuple(_drawn([*_of_curves(run, trained, evaluated), *_of_answers(run, answers)]))


def of_latencies(run: Run, milliseconds: Sequence[float], marks: Mapping[str, float]) -> tuple[Picture, ...]:
    """Draw how long the smoke test's requests took."""
    from tasks.reports import charts

    picture = _picture(run, "latency", f"{run.pipeline}: {len(milliseconds)} requests of one example")
    return tuple(
        _drawn([(picture, lambda: charts.latencies(picture.file, picture.title, milliseconds, marks))])
    )


Drawing = tuple[Picture, Callable[[], None]]


def _of_curves(run: Run, trained: Curves, evaluated: Curves) -> Iterator[Drawing]:
    from tasks.reports import charts

    loss = _picture(run, "loss", f"{run.pipeline}: loss")
    points = trained.get("loss", [])
    if points:
        yield loss, lambda: charts.curves(loss.file, loss.title, points, evaluated.get("loss", []))
    for name, values in evaluated.items():
        if name not in _NOT_QUALITY and len(values) > 1:
            yield _of_metric(run, name, trained.get(name, []), values)


def _of_metric(
    run: Run, name: str, trained: Sequence[tuple[int, float]], values: Sequence[tuple[int, float]]
) -> Drawing:
    from tasks.reports import charts

    picture = _picture(run, f"metric-{name}", f"{run.pipeline}: {name}")
    return picture, lambda: charts.curves(picture.file, picture.title, trained, values)


def _of_answers(run: Run, answers: Iterable[Answered]) -> Iterator[Drawing]:
    for each in answers:
        yield _of_numbers(run, each) if each.is_number else _of_classes(run, each)


def _of_numbers(run: Run, each: Answered) -> Drawing:
    from tasks.reports import charts

    picture = _picture(run, f"residuals-{each.label}", f"{run.pipeline}: errors of {each.label}")
    return picture, lambda: charts.residuals(picture.file, picture.title, each.expected, each.predicted)


def _of_classes(run: Run, each: Answered) -> Drawing:
    from tasks.reports import charts

    picture = _picture(
        run, f"confusion-{each.label}", f"{run.pipeline}: {each.label}, and what it was taken for"
    )
    return picture, lambda: charts.confusion(picture.file, picture.title, each.expected, each.predicted)


def _picture(run: Run, name: str, title: str) -> Picture:
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    return Picture(title, run.folder / "pictures" / f"{safe}.svg")


def _drawn(drawings: Iterable[Drawing]) -> Iterator[Picture]:
    for picture, draw in drawings:
        try:
            draw()
            yield picture
        except Exception as error:
            _log.warning("%s could not be drawn: %s: %s", picture.file, type(error).__name__, error)
