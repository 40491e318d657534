"""Pictures and pages of a run: what people see of it in the Prefect UI and in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tasks.core.artifacts import (
    Baseline,
    Check,
    Endpoint,
    Evaluation,
    Picture,
    Run,
    SliceMetrics,
    SmokeTest,
    StageReport,
    Verdict,
)
from tasks.evaluations import training_curves
from tasks.evaluations.answered import Answered
from tasks.reports import charts, evaluation_page, pictures, prefect_artifacts, smoke_test_page
from tasks.reports.verdicts import as_markdown

SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run("two_heads", "r1", tmp_path / "run", tmp_path, tmp_path / "models")


def _text(file: Path) -> str:
    return " ".join(ElementTree.parse(file).getroot().itertext())


class TestPictures:
    """SVG files."""

    def test_numbers_have_residuals_and_classes_confusions(self, run: Run) -> None:
        """By the dtype of the label; each picture says of which."""
        answers = [
            Answered("price", np.array([1.0, 2.0, 3.0]), np.array([1.1, 1.9, 3.5])),
            Answered("species", np.array([b"cat", b"dog"]), np.array([b"cat", b"cat"])),
        ]
        drawn = pictures.of_evaluation(run, {}, {}, answers)
        assert [picture.file.name for picture in drawn] == ["residuals-price.svg", "confusion-species.svg"]
        assert "errors of price" in _text(drawn[0].file)
        assert "dog" in _text(drawn[1].file)

    def test_a_curve_has_training_and_held_out(self, run: Run) -> None:
        """A metric is drawn from its second evaluation on; loss and counts are not metrics."""
        trained = {"loss": [(1, 2.0), (2, 1.0)]}
        evaluated = {"loss": [(2, 1.2)], "accuracy": [(1, 0.5), (2, 0.7)], "auc": [(2, 0.9)]}
        drawn = pictures.of_evaluation(run, trained, evaluated, [])
        assert [picture.file.stem for picture in drawn] == ["loss", "metric-accuracy"]
        assert "training" in _text(drawn[0].file)
        assert "held-out" in _text(drawn[0].file)

    @pytest.mark.parametrize(
        ("points", "step", "loss", "ends"),
        [
            ([(1, 2.0), (901, 1.0)], 1000, 0.5, [(1, 2.0), (901, 1.0), (1000, 0.5)]),
            ([(1, 2.0), (1000, 0.6)], 1000, 0.5, [(1, 2.0), (1000, 0.6)]),
            ([(1, 2.0), (901, 1.0)], 1000, None, [(1, 2.0), (901, 1.0)]),
        ],
    )
    def test_the_curve_of_the_loss_ends_at_the_last_step(
        self, points: list[Any], step: int, loss: float | None, ends: list[Any]
    ) -> None:
        """Summaries are of every so many steps; the last step's loss is in the checkpoint's report."""
        assert training_curves.to_the_end({"loss": points}, step, loss) == {"loss": ends}

    def test_the_slowest_request_does_not_squeeze_the_others(self, run: Run) -> None:
        """It is counted, and named, at the end of the axis."""
        (picture,) = pictures.of_latencies(run, [1.0] * 99 + [500.0], {"p50": 1.0, "p99": 1.2})
        assert "1 slower, up to 500 ms" in _text(picture.file)

    def test_the_same_picture_has_the_same_bytes(self, tmp_path: Path) -> None:
        """No date and no random ids: two runs that are alike leave files that are."""
        for name in ("a.svg", "b.svg"):
            charts.curves(tmp_path / name, "loss", [(1, 2.0), (2, 1.0)])
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()

    def test_what_cannot_be_drawn_fails_nothing(self, run: Run) -> None:
        """The others are drawn all the same."""
        answers = [
            Answered("odd", np.array([1.0, np.nan]), np.array([np.inf, 1.0])),
            Answered("fine", np.array([1, 2]), np.array([1, 2])),
        ]
        drawn = pictures.of_evaluation(run, {}, {}, answers)
        assert "confusion-fine.svg" in [picture.file.name for picture in drawn]

    def test_only_the_commonest_classes_are_shown(self, run: Run) -> None:
        """A thousand classes would be no picture."""
        labels = np.repeat(np.arange(40), np.arange(40) + 1)
        (picture,) = pictures.of_evaluation(run, {}, {}, [Answered("id", labels, labels)])
        shown = _text(picture.file).split()
        assert "39" in shown
        assert "12" not in shown


class TestPages:
    """Markdown for the Prefect UI."""

    def test_an_evaluation_is_beside_what_is_served(self, run: Run, tmp_path: Path) -> None:
        """The gate first, then the differences; pictures as data: URIs, which need no file server."""
        (tmp_path / "p.svg").write_text(SVG)
        evaluated = Evaluation(
            {"accuracy": 0.9, "global_step": 5.0}, 1000,
            (Check("accuracy", "accuracy >= 0.95", 0.9, 0.95, False),),
            (SliceMetrics("country", "a|b", 10, {"accuracy": 0.5}),),
            Baseline(7, {"accuracy": 0.93}, "its variables"),
            (Picture("loss", tmp_path / "p.svg"), Picture("gone", tmp_path / "gone.svg")),
        )  # fmt: skip
        page = evaluation_page.as_markdown(evaluated, run)
        assert page.startswith("# ✗ two_heads: 1,000 held-out examples")
        assert "| accuracy | 0.9 | 0.93 | -0.03 |" in page
        assert "| a\\|b | 10 | 0.5 |" in page
        assert page.count("data:image/svg+xml;base64,") == 1

    def test_a_baseline_that_was_not_measured_says_why(self, run: Run) -> None:
        """Instead of a column without numbers."""
        page = evaluation_page.as_markdown(
            Evaluation({"accuracy": 0.9}, 10, baseline=Baseline(7, {}, "not measured: no such variable")), run
        )
        assert "Version 7, which was served, is not measured: no such variable." in page

    def test_a_smoke_test_links_to_what_answers(self) -> None:
        """The state of the versions, and the signatures."""
        endpoint = Endpoint("small", 8, "127.0.0.1:1", "http://127.0.0.1:2", "process", "process 3", True)
        page = smoke_test_page.as_markdown(SmokeTest((), 12, "12 numbers bit-equal", 1.0, 2.0), endpoint)
        assert "<http://127.0.0.1:2/v1/models/small>" in page
        assert "(http://127.0.0.1:2/v1/models/small/metadata)" in page

    def test_failed_checks_come_before_the_stages(self) -> None:
        """Who is on call reads from the top."""
        checks = (Check("a", "a >= 1", 2, 1, True), Check("b", "b >= 1", 0, 1, False))
        verdict = Verdict("small", "r1", "rejected", None, None, None, (), checks, {}, None)
        page = as_markdown(verdict, "/runs/small/r1")
        failed, stages, every = map(page.index, ("## Checks that failed", "## Stages", "## All 2 checks"))
        assert failed < stages < every
        assert page.index("**b**") < stages
        assert page.count("**a**") == 1
        assert "/runs/small/r1" in page

    def test_what_a_stage_proved_is_wrapped(self) -> None:
        """The UI cuts a cell off that is wider than the window; what did not pass says so."""
        proved = "word " * 30
        stages = (StageReport("train", 1.0, "passed", proved), StageReport("export", 1.0, "failed", "no"))
        page = as_markdown(Verdict("small", "r1", "failed", None, None, None, stages, (), {}, None))
        lines = [line for line in page.splitlines() if "word" in line]
        assert len(lines) == 3 and max(map(len, lines)) < 100
        assert "| ✗ | export | 1.0 | failed: no |" in page


def test_keys_are_as_prefect_takes_them() -> None:
    """Lower-case letters, digits and dashes."""
    assert prefect_artifacts.key("two_heads-verdict") == "two-heads-verdict"
