"""The recipes of docs/how-to/ci: their script lines, run as a CI system runs them, in a clone."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import junitparser
import pytest
import yaml
from installed_clones import without_install
from nightly_station import Station
from slipway_command import REPOSITORY

pytestmark = pytest.mark.timeout(1500)

RECIPES = REPOSITORY / "docs" / "how-to" / "ci"


@pytest.fixture(scope="module")
def nights(station: Station) -> Iterator[Station]:
    """A station with one worker at work."""
    with station.worker("ci"):
        yield station


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of this repository whose `make install` has nothing to do."""
    folder = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", REPOSITORY, folder], check=True)
    without_install(folder)
    return folder


def _github(recipe: dict[str, Any]) -> list[str]:
    (job,) = recipe["jobs"].values()
    return [step["run"] for step in job["steps"] if "run" in step]


def _gitlab(recipe: dict[str, Any]) -> list[str]:
    job = recipe["retrain"]
    return ["\n".join([*job["before_script"], *job["script"]])]


@pytest.mark.parametrize(("name", "scripts"), [("github-actions", _github), ("gitlab-ci", _gitlab)])
def test_its_lines_retrain_and_leave_the_reports(
    nights: Station, clone: Path, name: str, scripts: Any
) -> None:
    """Exit code 0, and the files that the recipe hands to the CI system are there."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yml").read_text())
    environment = {key: nights.environment[key] for key in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")}
    bare = {"PATH": os.environ["PATH"], "HOME": str(clone.parent), "CI": "true", "COLUMNS": "200",
            "SLIPWAY_HOME": str(clone.parent / "home"), **environment}  # fmt: skip
    for script in scripts(recipe):
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script], cwd=clone, env=bare, timeout=600,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
    assert json.loads((clone / "verdict.json").read_text())["outcome"] == "deployed"
    stages, checks = junitparser.JUnitXml.fromfile(str(clone / "junit.xml"))
    assert (stages.name, checks.name) == ("digits.stages", "digits.checks")
    assert stages.errors == checks.failures == 0


def test_the_recipes_keep_the_reports_when_the_run_fails() -> None:
    """A rejected run is the one whose report somebody wants to read."""
    github = yaml.safe_load((RECIPES / "github-actions.yml").read_text())
    (job,) = github["jobs"].values()
    assert [step["if"] for step in job["steps"] if "junit.xml" in str(step.get("with"))] == ["always()"] * 2
    gitlab = yaml.safe_load((RECIPES / "gitlab-ci.yml").read_text())
    assert gitlab["retrain"]["artifacts"]["when"] == "always"
    assert gitlab["retrain"]["artifacts"]["reports"]["junit"] == "junit.xml"
