"""What a run notes of itself, the verdict that this amounts to, and how a person reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_jsonable_python

from configs.loading.errors import ConfigError, SlipwayError
from tasks.core.artifacts import (
    Baseline,
    Check,
    Endpoint,
    Evaluation,
    ModelVersion,
    SliceMetrics,
    StageReport,
    Validation,
    Verdict,
    Withdrawal,
)
from tasks.core.errors import DataError, ProcessDied, Rejected, SmokeTestFailed
from tasks.reports.verdicts import as_markdown
from tasks.runs import run_records
from tasks.runs.run_records import Event, RunRecord

GOOD = Check("accuracy", "accuracy >= 0.9", 0.95, 0.9, True)
BAD = Check("loss", "loss <= 1", 2.5, 1.0, False)
ENDPOINT = Endpoint("digits", 8, "127.0.0.1:8500", "http://127.0.0.1:8501", "process", "process 7", True)
VERSION = ModelVersion(8, Path("/models/8"), previous=7)


def _fail(record: RunRecord, name: str, error: BaseException) -> None:
    with pytest.raises(type(error)), record.stage(name):
        raise error


def _after(record: RunRecord, *artifacts: Any) -> RunRecord:
    """Let a stage end well for each artifact."""
    for artifact in artifacts:
        with record.stage(type(artifact).__name__) as entry:
            record.note(entry, artifact)
    return record


class TestStages:
    """A line of the verdict for each stage."""

    def test_a_rejected_evaluation_keeps_what_was_measured(self) -> None:
        """Who reads the verdict asks why: metrics and slices say it, and each check is there once."""
        rejected, record = Rejected("accuracy", "", (BAD,)), RunRecord()
        slices = (SliceMetrics("country", "DE", 10, {"accuracy": 0.5}),)
        rejected.evaluated = Evaluation({"accuracy": 0.8}, 100, (BAD,), slices, Baseline(7, {}, ""))
        _fail(record, "evaluate", rejected)
        verdict = record.verdict()
        assert verdict.metrics == {"accuracy": 0.8}
        assert verdict.slices == slices
        assert verdict.baseline == Baseline(7, {}, "")
        assert verdict.checks == (BAD,)

    def test_a_stage_that_ends_well_has_passed(self) -> None:
        """It has its seconds and the sentence that its artifact says of itself."""
        record = _after(RunRecord(), VERSION)
        (stage,) = record.verdict().stages
        assert (stage.name, stage.outcome) == ("ModelVersion", "passed")
        assert stage.summary == "version 8 is visible, whole and on disk, after 7"
        assert 0 <= stage.seconds < 1

    @pytest.mark.parametrize(
        ("error", "outcome", "said"),
        [
            (Rejected("accuracy is 0.1"), "rejected", "accuracy is 0.1"),
            (DataError("no examples", "add some"), "failed", "no examples"),
            (ValueError("odd"), "failed", "ValueError: odd"),
            (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
            (SystemExit(1), "interrupted", "SystemExit"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_an_error_ends_a_stage(self, error: BaseException, outcome: str, said: str) -> None:
        """A gate's no, a failure and an interruption are told apart; the error goes on."""
        record = RunRecord()
        _fail(record, "train", error)
        (stage,) = record.verdict().stages
        assert (stage.outcome, stage.summary) == (outcome, said)

    def test_a_stage_that_is_tried_again_has_one_entry(self) -> None:
        """The last try counts, and stands where it happened."""
        record = _after(RunRecord(), VERSION)
        _fail(record, "train", ProcessDied("killed"))
        with record.stage("train"):
            pass
        assert [(stage.name, stage.outcome) for stage in record.verdict().stages] == [
            ("ModelVersion", "passed"),
            ("train", "passed"),
        ]

    def test_the_checks_of_all_stages_are_kept(self) -> None:
        """Those of an artifact, and those of an error, in order."""
        record = _after(RunRecord(), Validation((GOOD,), 10, "10 numbers bit-equal"))
        _fail(record, "evaluate", Rejected("no", checks=(GOOD, BAD)))
        assert record.verdict().checks == (GOOD, GOOD, BAD)

    def test_metrics_are_those_of_the_evaluation(self) -> None:
        """Every metric is in the verdict, gated or not."""
        record = _after(RunRecord(), Evaluation({"accuracy": 0.95, "loss": 2.5}, 100, (GOOD,)))
        assert record.verdict().metrics == {"accuracy": 0.95, "loss": 2.5}


class TestOutcome:
    """What a run came to."""

    @pytest.mark.parametrize(
        ("artifacts", "error", "outcome"),
        [
            ([], None, "trained"),
            ([VERSION, ENDPOINT], None, "deployed"),
            ([], Rejected("no"), "rejected"),
            ([], DataError("none"), "failed"),
            ([], ConfigError("wrong"), "failed"),
            ([], KeyboardInterrupt(), "cancelled"),
            ([VERSION], SmokeTestFailed("slow"), "failed"),
            ([VERSION, ENDPOINT, Withdrawal(8, serving=7)], SmokeTestFailed("slow"), "rolled_back"),
            ([VERSION, ENDPOINT, Withdrawal(8, serving=None)], SmokeTestFailed("slow"), "failed"),
        ],
    )
    def test_it_follows_from_what_happened(
        self, artifacts: list[Any], error: BaseException | None, outcome: str
    ) -> None:
        """Rolled back is only what has a version before it that answers again."""
        record = _after(RunRecord(), *artifacts)
        record.error = error
        assert record.verdict().outcome == outcome

    def test_version_and_endpoint_are_in_the_verdict(self) -> None:
        """The version, the one before it, and the addresses of the server."""
        verdict = _after(RunRecord("digits", "r1"), VERSION, ENDPOINT).verdict()
        assert (verdict.pipeline, verdict.run_id) == ("digits", "r1")
        assert (verdict.version, verdict.previous_version) == (8, 7)
        assert verdict.endpoint == {"grpc": "127.0.0.1:8500", "rest": "http://127.0.0.1:8501"}

    @pytest.mark.parametrize(
        ("error", "described"),
        [
            (DataError("none", "add"), {"class": "DataError", "message": "none", "hint": "add"}),
            (
                ValueError("odd"),
                {"class": "ValueError", "message": "odd", "hint": "a defect: please report it"},
            ),
            (
                KeyboardInterrupt(),
                {
                    "class": "Interrupted",
                    "message": "the run was interrupted (KeyboardInterrupt)",
                    "hint": "what it finished is kept, and its checkpoints: "
                    "slipway run PIPELINE --resume goes on",
                },
            ),
        ],
        ids=["ours", "a defect", "Ctrl-C"],
    )
    def test_an_error_has_class_message_and_hint(
        self, error: BaseException, described: dict[str, str]
    ) -> None:
        """An error of ours says what to do, any other is a defect, an interruption is neither."""
        assert RunRecord(error=error).verdict().error == described

    def test_as_json_it_has_the_keys_that_tools_rely_on(self) -> None:
        """pipeline, run_id, outcome, version, previous_version, endpoint, stages, checks, error …"""
        record = _after(
            RunRecord("digits", "r1"), Validation((GOOD,), 1, "1 numbers bit-equal"), VERSION, ENDPOINT
        )
        record.error = SlipwayError("what", "do")
        verdict = json.loads(json.dumps(to_jsonable_python(record.verdict())))
        assert list(verdict) == [
            "pipeline", "run_id", "outcome", "version", "previous_version", "endpoint", "stages", "checks",
            "metrics", "error", "baseline", "slices", "pictures",
        ]  # fmt: skip
        assert list(verdict["endpoint"]) == ["grpc", "rest"]
        assert list(verdict["error"]) == ["class", "message", "hint"]
        assert all(
            list(stage) == ["name", "seconds", "outcome", "summary", "started"] for stage in verdict["stages"]
        )
        assert verdict["checks"] == [
            {
                "name": "accuracy",
                "rule": "accuracy >= 0.9",
                "observed": 0.95,
                "limit": 0.9,
                "passed": True,
                "baseline": None,
            }
        ]


class TestRecording:
    """The record of the run under way."""

    def test_it_is_the_current_one_inside_only(self) -> None:
        """A stage that runs alone has a record of its own, which nobody keeps."""
        with run_records.recording("digits", "r1") as record:
            assert run_records.current_record() is record
        assert run_records.current_record() is not record
        assert run_records.current_record().pipeline == ""

    def test_the_error_that_ends_it_is_noted_and_raised(self) -> None:
        """Ctrl-C too."""
        with pytest.raises(KeyboardInterrupt), run_records.recording("digits", "r1") as record:
            raise KeyboardInterrupt
        assert isinstance(record.error, KeyboardInterrupt)

    def test_watchers_are_told_of_every_event(self) -> None:
        """Begin, progress and end of a stage, then the end of the run with its verdict."""
        events: list[Event] = []
        outer: list[Event] = []
        with (
            run_records.watched_by(outer.append),
            run_records.watched_by(events.append),
            run_records.recording("digits", "r1") as record,
        ):
            with record.stage("train"):
                record.progress({"step": 1})
            record.end()
        kinds = ["stage_started", "progress", "stage_ended", "run_ended"]
        assert [event.kind for event in events] == [event.kind for event in outer] == kinds
        assert events[1].progress == {"step": 1}
        assert events[2].entry is not None and events[2].entry.outcome == "passed"
        assert events[3].verdict == record.verdict()

    def test_a_watcher_hears_nothing_of_runs_outside_its_block(self) -> None:
        """After the block the next run is not watched."""
        events: list[Event] = []
        with run_records.watched_by(events.append):
            pass
        with run_records.recording("digits", "r2") as record, record.stage("train"):
            pass
        assert events == []

    def test_progress_outside_a_stage_is_nobodys(self) -> None:
        """Before the first stage there is nothing to show it at."""
        events: list[Event] = []
        RunRecord(watchers=(events.append,)).progress({"step": 1})
        assert events == []


def _verdict(**changes: Any) -> Verdict:
    values: dict[str, Any] = {
        "pipeline": "digits", "run_id": "r1", "outcome": "deployed", "version": 8, "previous_version": 7,
        "endpoint": {"grpc": "127.0.0.1:8500", "rest": "http://127.0.0.1:8501"},
        "stages": (StageReport("train", 1.26, "passed", "checkpoint at step 500"),),
        "checks": (GOOD, BAD), "metrics": {}, "error": None,
    }  # fmt: skip
    return Verdict(**{**values, **changes})


class TestMarkdown:
    """The artifact in the Prefect UI."""

    @pytest.mark.parametrize(
        ("outcome", "heading"),
        [
            ("deployed", "# ✓ digits: deployed"),
            ("trained", "# ✓ digits: trained"),
            ("skipped", "# ✓ digits: skipped"),
            ("rejected", "# ✗ digits: rejected"),
            ("rolled_back", "# ✗ digits: rolled back"),
            ("failed", "# ✗ digits: failed"),
        ],
    )
    def test_the_outcome_is_the_heading(self, outcome: str, heading: str) -> None:
        """A tick for what was to come of it, a cross for all else."""
        assert as_markdown(_verdict(outcome=outcome)).splitlines()[0] == heading

    def test_it_shows_version_endpoint_stages_and_checks(self) -> None:
        """All that the verdict holds, for a person."""
        lines = as_markdown(_verdict()).splitlines()
        assert "The new version answers. Version **8**; before it: 7." in lines
        assert "Run `r1`." in lines
        assert "Serves at gRPC `127.0.0.1:8500`, REST <http://127.0.0.1:8501/v1/models/digits>." in lines
        assert "| ✓ | train | 1.3 | checkpoint at step 500 |" in lines
        assert "- ✓ **accuracy**: accuracy >= 0.9; observed 0.95, limit 0.9" in lines
        assert "- ✗ **loss**: loss <= 1; observed 2.5, limit 1" in lines

    def test_what_there_is_not_is_left_out(self) -> None:
        """Without version, endpoint, checks and error there is no line for them."""
        bare = as_markdown(
            _verdict(outcome="rejected", version=None, previous_version=None, endpoint=None, checks=())
        )
        assert "Nothing was published." in bare
        assert "Serves" not in bare and "rule" not in bare and "**" not in bare
        assert "Version **8**." in as_markdown(_verdict(previous_version=None))

    def test_the_error_stands_before_the_stages(self) -> None:
        """Class and message, and the hint, as it was laid out, in a block of its own."""
        error = {"class": "DeployFailed", "message": "it died", "hint": "its last lines:\n  out of cheese"}
        shown = as_markdown(_verdict(outcome="failed", error=error))
        assert "\n**DeployFailed**: it died\n\n```\nits last lines:\n  out of cheese\n```\n" in shown
        assert shown.index("DeployFailed") < shown.index("| stage |")
        assert "```" not in as_markdown(_verdict(error={**error, "hint": ""}))

    @given(st.lists(st.text(alphabet="ab|\\\n\r\x85 `", max_size=8), min_size=3, max_size=3))
    def test_a_table_keeps_its_columns_whatever_is_in_them(self, cells: list[str]) -> None:
        """Pipes and line ends in a name or a sentence neither add a column nor end a row."""
        stage = StageReport(cells[0], 1.0, cells[1], cells[2])
        lines = as_markdown(_verdict(stages=(stage,), checks=())).splitlines()
        first = lines.index("|---|---|---:|---|") + 1
        row, after = lines[first : first + 2]
        assert after == ""
        bare = re.sub(r"\\[\\|]", "x", row)  # what is escaped ends no cell
        assert bare.count("|") == 5
        assert "\\" not in bare
