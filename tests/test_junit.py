"""A verdict as JUnit XML, read by a parser that others wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import junitparser
import pytest

from configs.loading.errors import ConfigError
from tasks.core.artifacts import Check, StageReport, Verdict
from tasks.core.errors import Rejected
from tasks.reports import junit
from tasks.reports.verdicts import exit_code
from tasks.runs.run_records import RunRecord

PASSED = StageReport("ingest", 1.25, "passed", "1,797 tf.Examples match the feature spec")
DEPLOYED = Verdict(
    "digits", "r1", "deployed", 7, 6, None, (PASSED, StageReport("evaluate", 0.5, "passed", "accuracy 0.97")),
    (Check("accuracy", "accuracy >= 0.95", 0.97, 0.95, True),), {"accuracy": 0.97}, None,
)  # fmt: skip
REJECTED = replace(
    DEPLOYED,
    outcome="rejected",
    stages=(PASSED, StageReport("evaluate", 0.5, "rejected", "accuracy is 0.5")),
    checks=(Check("accuracy", "accuracy >= 0.95", 0.5, 0.95, False), *DEPLOYED.checks),
    error={"class": "Rejected", "message": "accuracy is 0.5", "hint": "train longer"},
)


def _read(verdict: Verdict, folder: Path) -> junitparser.JUnitXml:
    junit.write(verdict, folder / "reports" / "junit.xml")
    return junitparser.JUnitXml.fromfile(str(folder / "reports" / "junit.xml"))


def test_stages_and_checks_are_cases(tmp_path: Path) -> None:
    """In two suites, with their seconds, and what each proved."""
    stages, checks = _read(DEPLOYED, tmp_path)
    assert (stages.name, stages.tests, stages.failures, stages.errors) == ("digits.stages", 2, 0, 0)
    assert stages.time == 1.75
    assert [(case.classname, case.name, case.time) for case in stages] == [
        ("digits.stages", "ingest", 1.25), ("digits.stages", "evaluate", 0.5)]  # fmt: skip
    properties = [(each.name, each.value) for each in stages.properties()]
    assert properties == [("pipeline", "digits"), ("run_id", "r1"), ("outcome", "deployed")]
    (check,) = checks
    assert check.is_passed
    assert check.system_out == "accuracy >= 0.95: observed 0.97, limit 0.95"


def test_what_a_gate_refused_is_a_failure(tmp_path: Path) -> None:
    """The check, and its stage, with what to do; the totals say how many."""
    read = _read(REJECTED, tmp_path)
    stages, checks = read
    assert (read.tests, read.failures, read.errors) == (4, 2, 0)
    (failed,) = [case for case in checks if case.is_failure]
    assert failed.result[0].message == "accuracy >= 0.95: observed 0.5, limit 0.95"
    (stage,) = [case for case in stages if case.is_failure]
    assert stage.result[0].text == "accuracy is 0.5\ntrain longer"


@pytest.mark.parametrize("outcome", ["failed", "interrupted"])
def test_what_broke_is_an_error(tmp_path: Path, outcome: str) -> None:
    """As CI systems tell the two apart."""
    error = {"class": "ModelError", "message": "no such optimizer", "hint": ""}
    broken = replace(
        DEPLOYED, stages=(PASSED, StageReport("train", 1, outcome, "no such optimizer")), error=error
    )
    stages, _ = _read(broken, tmp_path)
    assert [case.is_error for case in stages] == [False, True]
    assert (stages.failures, stages.errors) == (0, 1)


def test_a_run_that_never_began_is_one_case(tmp_path: Path) -> None:
    """So that CI shows more than an empty report."""
    never = RunRecord("digits", error=ConfigError("pipeline.yaml:3: 'trainin' is not a known key", "a hint"))
    stages, checks = _read(never.verdict(), tmp_path)
    assert ([case.name for case in stages], list(checks)) == (["run"], [])
    (case,) = stages
    assert case.result[0].type == "ConfigError"
    assert "a hint" in case.result[0].text


def test_what_xml_cannot_hold_is_replaced(tmp_path: Path) -> None:
    """Escape codes and null bytes of a server's log; quotes and brackets are escaped."""
    proved = 'a "b" <c> & \x1b[31md\x00 é 😀 \ud800 ]]>'
    stages, _ = _read(replace(DEPLOYED, stages=(replace(PASSED, summary=proved),)), tmp_path)
    (case,) = stages
    assert case.system_out == 'a "b" <c> & ?[31md? é 😀 ? ]]>'


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        (DEPLOYED, 0),
        (REJECTED, 3),
        (RunRecord("digits", error=ConfigError("no")).verdict(), 2),
        (RunRecord("digits", error=Rejected("no")).verdict(), 3),
        (RunRecord("digits", error=ValueError("a defect")).verdict(), 1),
        (RunRecord("digits", error=KeyboardInterrupt()).verdict(), 4),
    ],
    ids=["deployed", "rejected", "bad configuration", "a gate", "a defect", "interrupted"],
)
def test_the_exit_code_follows_from_the_verdict(verdict: Verdict, code: int) -> None:
    """The same for `slipway run` and for `slipway trigger`."""
    assert exit_code(verdict) == code
