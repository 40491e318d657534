"""A verdict as JUnit XML, which CI systems show: every stage and every check of a gate is a test case.

There is no standard; this is what Jenkins, GitLab and GitHub's test reporters agree on: `testsuites`,
`testsuite` with counts, `testcase` with `failure` (a gate said no) or `error` (something went wrong).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from tasks.core import durable_files
from tasks.core.artifacts import Check, StageReport, Verdict

# XML 1.0 has no place for these, not even escaped; a server's log in an error's hint may hold them.
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(verdict: Verdict, file: Path) -> None:
    """Write the verdict as JUnit XML, atomically."""
    durable_files.write(file, as_junit(verdict), synced=False)


def as_junit(verdict: Verdict) -> bytes:
    """Return the verdict as JUnit XML: the suites `<pipeline>.stages` and `<pipeline>.checks`.

    Both have the properties `pipeline`, `run_id` and `outcome`.
    """
    root = Element("testsuites", name=f"slipway {verdict.pipeline}")
    stages = [_stage(stage, verdict) for stage in verdict.stages]
    _suite(root, verdict, "stages", [*stages, *_without_stage(verdict)])
    _suite(root, verdict, "checks", [_check(check) for check in verdict.checks])
    for total in ("tests", "failures", "errors"):
        root.set(total, str(sum(int(suite.get(total, 0)) for suite in root)))
    indent(root)
    return bytes(tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _suite(root: Element, verdict: Verdict, kind: str, cases: list[Element]) -> None:
    name = f"{verdict.pipeline}.{kind}"
    seconds = sum(float(case.get("time", 0)) for case in cases)
    suite = SubElement(root, "testsuite", name=name)
    suite.attrib.update(tests=str(len(cases)), skipped="0", time=f"{seconds:.3f}")
    for total, tag in (("failures", "failure"), ("errors", "error")):
        suite.set(total, str(sum(case.find(tag) is not None for case in cases)))
    properties = SubElement(suite, "properties")
    for key in ("pipeline", "run_id", "outcome"):
        SubElement(properties, "property", name=key, value=_clean(getattr(verdict, key)))
    for case in cases:
        case.set("classname", name)
        suite.append(case)


def _stage(stage: StageReport, verdict: Verdict) -> Element:
    case = Element("testcase", name=stage.name, time=f"{stage.seconds:.3f}")
    if stage.outcome == "passed":
        SubElement(case, "system-out").text = _clean(stage.summary)
    else:
        kind = "failure" if stage.outcome == "rejected" else "error"
        hint = verdict.error["hint"] if verdict.error else ""
        _add(case, kind, stage.outcome, stage.summary, f"{stage.summary}\n{hint}")
    return case


def _without_stage(verdict: Verdict) -> Iterator[Element]:
    """Yield a case for what ended the run where no stage did, such as a bad configuration."""
    if verdict.error is not None and all(stage.outcome == "passed" for stage in verdict.stages):
        case = Element("testcase", name="run", time="0")
        message = verdict.error["message"]
        _add(case, "error", verdict.error["class"], message, f"{message}\n{verdict.error['hint']}")
        yield case


def _check(check: Check) -> Element:
    case = Element("testcase", name=_clean(check.name), time="0")
    said = f"{check.rule}: observed {check.observed}, limit {check.limit}"
    said += "" if check.baseline is None else f", served now {check.baseline}"
    if check.passed:
        SubElement(case, "system-out").text = _clean(said)
    else:
        _add(case, "failure", "check", said, said)
    return case


def _add(case: Element, tag: str, kind: str, message: str, text: str) -> None:
    first_line = message.splitlines()[0] if message else kind
    SubElement(case, tag, type=kind, message=_clean(first_line)).text = _clean(text.strip())


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)
