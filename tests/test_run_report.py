"""`report.html`: what whoever is on call reads of a run, whatever it ended in."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from slipway_command import DIGITS

from configs.loading.pipelines import Pipeline, load_pipeline
from flows import recorded_runs
from flows.command.cli import main
from tasks.core.artifacts import Baseline, Check, Picture, Run, SliceMetrics, StageReport, Verdict
from tasks.reports import run_report
from tasks.runs import run_folders
from tasks.servers.live_service import LiveService

NOTHING = LiveService(None)
TRAINED = StageReport("train", 12.5, "passed", "checkpoint at step 500", "2026-11-28T02:31:07+00:00")
EVALUATED = StageReport("evaluate", 3.0, "passed", "accuracy 0.9", "2026-11-28T02:31:20+00:00")
MISSED = Check("accuracy", "accuracy >= 0.95", 0.9, 0.95, False, 0.97)
DRIFT = Check("data.pixels.drift", "PSI <= 0.1", 0.02, 0.1, True)
DEPLOYED = Verdict(
    "digits", "r1", "deployed", 8, 7, {"grpc": "127.0.0.1:1", "rest": "http://127.0.0.1:2"},
    (TRAINED, EVALUATED), (DRIFT,), {"accuracy": 0.98}, None,
    Baseline(7, {"accuracy": 0.97}, "its variables"),
    (SliceMetrics("country", "DE", 1234, {"accuracy": 0.91}),),
)  # fmt: skip


def _failed(stage: str, how: str, error: str, message: str) -> Verdict:
    ended = StageReport(stage, 1.0, how, message, "2026-11-28T02:32:00+00:00")
    return replace(
        DEPLOYED, outcome="rejected" if how == "rejected" else "failed", version=None, endpoint=None,
        stages=(TRAINED, ended), checks=(MISSED, DRIFT) if how == "rejected" else (DRIFT,),
        error={"class": error, "message": message, "hint": "look at it"},
    )  # fmt: skip


REJECTED = _failed("evaluate", "rejected", "Rejected", "accuracy is 0.9, required: accuracy >= 0.95")
FAILED = _failed("export", "failed", "ModelError", "no such <feature> & more")
ROLLED_BACK = replace(FAILED, outcome="rolled_back", version=8)
CANCELLED = replace(FAILED, outcome="cancelled", error={"class": "Interrupted", "message": "x", "hint": ""})
MISCONFIGURED = replace(FAILED, error={"class": "ConfigError", "message": "no such file", "hint": ""})


@pytest.fixture
def digits() -> Pipeline:
    return load_pipeline(DIGITS)


def _left(digits: Pipeline, verdict: Verdict | None, run_id: str = "r1") -> Run:
    """Leave a run's folder; without a verdict it was killed in train."""
    run = run_folders.describe(digits, run_id)
    run_folders.make(run)
    (run.folder / "config.yaml").write_text("name: digits\n")
    (run.folder / "logs").mkdir()
    for part in ("stages", "checkpoints", "pictures"):
        (run.folder / part).mkdir()
    shape = '<svg xmlns="http://www.w3.org/2000/svg" width="700" height="90"><circle r="40"/></svg>'
    (run.folder / "pictures" / "loss.svg").write_text(shape)
    (run.folder / "stages" / "check-data.json").write_text('{"checks": []}')
    for log in ("train", "export"):
        (run.folder / "logs" / f"{log}.log").write_text("".join(f"line {n} of {log}\n" for n in range(100)))
    (run.folder / "checkpoints" / "checkpoint").write_text('model_checkpoint_path: "/x/model.ckpt-1200"\n')
    (run.folder / "logs" / "export.log").unlink() if verdict is None else None
    if verdict is not None:
        picture = Picture("loss by step", run.folder / "pictures" / "loss.svg")
        run_folders.write_verdict(replace(verdict, pictures=(picture,)), run_folders.verdict_file(run))
    return run


def _part(page: str, name: str) -> str:
    """Return the text of an element by its id."""
    found = re.search(rf'<(\w+)[^>]* id="{name}">(.*?)</\1>', page, re.DOTALL)
    return re.sub(r"<[^>]+>", "", found.group(2)).strip() if found else ""


class TestWhatItSays:
    """The first screen."""

    @pytest.mark.parametrize(
        ("verdict", "sentence", "command"),
        [
            (DEPLOYED, "Deployed: version 8 answers.", "slipway status PIPELINE"),
            (REJECTED, "Rejected in evaluate. Nothing was published.", "slipway run PIPELINE"),
            (FAILED, "Failed in export. Nothing was published.", "slipway run PIPELINE --resume r1"),
            (ROLLED_BACK, "Version 8 was deployed, failed in export, and was rolled back.",
             "slipway status PIPELINE"),
            (CANCELLED, "Stopped in export by a person or a signal. Nothing was published.",
             "slipway run PIPELINE --resume r1"),
            (MISCONFIGURED, "Failed in export. Nothing was published.", "slipway check PIPELINE"),
            (None, "Killed in train. Nothing was published.", "slipway run PIPELINE --resume r1"),
        ],
        ids=["deployed", "rejected", "failed", "rolled back", "cancelled", "misconfigured", "killed"],
    )  # fmt: skip
    def test_outcome_and_next_command(
        self, digits: Pipeline, verdict: Verdict | None, sentence: str, command: str
    ) -> None:
        """One sentence, and a line to paste."""
        page = run_report.render(digits, _left(digits, verdict), NOTHING)
        assert f"<h1>{sentence}</h1>" in page
        assert _part(page, "next") == command.replace("PIPELINE", str(DIGITS))

    def test_what_serves_and_since_when(self, digits: Pipeline) -> None:
        """Of a server that does not answer too."""
        run = _left(digits, FAILED)
        since = run_report._changed(run.folder)
        page = run_report.render(digits, run, LiveService(7, since, "127.0.0.1:8500", "process 3"))
        assert "Version 7 serves at 127.0.0.1:8500 since 20" in _part(page, "serving")
        gone = run_report.render(digits, run, LiveService(None, None, "127.0.0.1:8500", "process 3"))
        assert "Nothing serves: process 3 does not answer." in _part(gone, "serving")

    def test_gates_curves_slices_and_provenance(self, digits: Pipeline) -> None:
        """Each with its numbers; of the log only the last lines of what failed."""
        page = run_report.render(digits, _left(digits, REJECTED), NOTHING)
        for shown in (
            "0.95",
            "0.97",
            "accuracy &gt;= 0.95",
            "1,234",
            "data.pixels.drift",
            "12.5 s",
            "name: digits",
        ):
            assert shown in page, shown
        assert 'alt="loss by step" src="data:image/svg+xml;base64,' in page
        failed = _part(run_report.render(digits, _left(digits, FAILED, "r2"), NOTHING), "log").splitlines()
        assert (failed[0], failed[-1], len(failed)) == ("line 80 of export", "line 99 of export", 20)

    def test_what_is_in_a_name_is_text(self, digits: Pipeline) -> None:
        """A feature's value or an error may hold anything."""
        page = run_report.render(digits, _left(digits, FAILED), NOTHING)
        assert "no such &lt;feature&gt; &amp; more" in page

    def test_it_needs_no_network(self, digits: Pipeline) -> None:
        """No address of anything to load."""
        page = run_report.render(digits, _left(digits, DEPLOYED), NOTHING)
        assert [found for found in re.findall(r'(?:src|href)="([^"]{9})', page) if found != "data:imag"] == []


class TestAKilledRun:
    """Its page is written by the next run."""

    def test_it_gets_its_page_once(self, digits: Pipeline) -> None:
        """Not the run under way, nor those that ended; again if it was resumed and killed again."""
        killed = _left(digits, None, "r1")
        _left(digits, FAILED, "r2")
        _left(digits, None, "r3")
        assert run_report.write_for_killed(digits, besides="r3") == [run_report.file(killed)]
        assert "Its last checkpoint is of step 1,200." in run_report.file(killed).read_text()
        assert run_report.write_for_killed(digits, besides="r3") == []
        os.utime(killed.folder / "logs" / "train.log", (2e9, 2e9))
        assert run_report.write_for_killed(digits, besides="r3") == [run_report.file(killed)]

    def test_it_shows_no_secret(self, digits: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        """A run that ends masks its logs; this one could not."""
        monkeypatch.setenv("TOKEN", "s3cret&value")
        run = _left(digits, None)
        own = digits.config.model_dump(mode="json", by_alias=True)
        own["data"]["secrets"] = {"TOKEN": "environment"}
        (run.folder / "config.yaml").write_text(yaml.safe_dump(own))
        (run.folder / "logs" / "train.log").write_text("with s3cret&value\n")
        page = run_report.render(digits, run, NOTHING)
        assert "with ***" in page
        assert "s3cret&value" not in page


def test_a_page_that_cannot_be_written_fails_no_run(digits: Pipeline) -> None:
    """The run has ended, whatever becomes of its page."""
    run = _left(digits, DEPLOYED)
    run_report.file(run).mkdir()
    assert run_report.write(digits, run) is None


def test_the_command_shows_the_newest(digits: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """Or the one that is named; another name is refused with those that there are."""
    _left(digits, DEPLOYED, "r1")
    newest = _left(digits, REJECTED, "r2")
    assert main(["report", str(DIGITS)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Rejected in evaluate. Nothing was published.\nNothing serves.\n")
    assert said.splitlines()[-1] == str(run_report.file(newest))
    assert main(["report", str(DIGITS), "r1"]) == 0
    assert "Deployed: version 8 answers." in capsys.readouterr().out
    assert main(["report", str(DIGITS), "r9"]) == 2
    assert "the newest runs: r1, r2" in capsys.readouterr().err


def test_the_prefect_page_says_what_to_type(digits: Pipeline) -> None:
    """What serves, the next command, and the one that opens the report: a browser opens no file from it."""
    run = _left(digits, REJECTED)
    page = recorded_runs.page_in_prefect(REJECTED, digits, run)
    lines = page.splitlines()
    assert "Nothing serves." in lines
    assert f"slipway run {DIGITS}" in lines
    assert f"slipway report {DIGITS} {run.run_id}" in lines
    assert "file:" not in page


@pytest.mark.browser
@pytest.mark.parametrize("verdict", [DEPLOYED, REJECTED, FAILED, None])
def test_a_phone_shows_it(digits: Pipeline, browser: Any, verdict: Verdict | None) -> None:
    """Outcome, what serves and cause on the first screen, nothing beyond its width, nothing fetched."""
    run = _left(digits, verdict)
    assert run_report.write(digits, run) is not None
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(run_report.file(run).as_uri())
    try:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        first_screen = ["h1", "#serving", "#next" if verdict is DEPLOYED else "#cause"]
        for part in first_screen:
            box = page.locator(part).bounding_box()
            assert box["y"] + box["height"] < 844, part
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert page.locator("img").count() == 1
        others = [url for url in fetched if not url.startswith(("data:", run_report.file(run).as_uri()))]
        assert others == []
    finally:
        page.close()
