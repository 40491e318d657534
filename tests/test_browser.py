"""A nightly run in the real Prefect UI, as the person on call sees it: in Debian's chromium, offline.

With SLIPWAY_SCREENSHOTS naming a folder (`make screenshots`), each page that is looked at is saved there.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from night_worlds import PrefectServer
from PIL import Image
from slipway_command import REPOSITORY, Slipway, user_environment
from waiting import eventually

PATIENCE_SECONDS = 600
"""A run takes half a minute on a quiet machine; only what hangs takes longer than this."""

pytestmark = [pytest.mark.browser, pytest.mark.timeout(2 * PATIENCE_SECONDS)]

QUICK = {"training.max_steps": 300, "deployment.target": "process",
         "evaluation.thresholds": {"accuracy": {"min": 0.5}}}  # fmt: skip
STAGES = ("preflight", "ingest", "train", "evaluate", "export", "validate", "canary", "publish",
          "deploy", "smoke-test")  # fmt: skip


@dataclass(frozen=True)
class Nightly:
    """The digits' deployment, one run of it that is scheduled, and the environment that a worker needs."""

    ui: str
    deployment: str
    run: str
    environment: dict[str, str]

    @property
    def auth(self) -> tuple[str, str]:
        """User and password of the API."""
        user, password = self.environment["PREFECT_API_AUTH_STRING"].split(":")
        return user, password


@pytest.fixture(scope="module")
def nightly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nightly]:
    """Deployed from prefect.yaml to `slipway ui`, as a user does it; no worker is there yet."""
    home = tmp_path_factory.mktemp("home")
    server = PrefectServer(home / "prefect", home)
    prefect_api = server.api
    environment = {
        **user_environment(home), "PREFECT_API_URL": prefect_api, "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "2", "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip
    server.start(environment)
    environment["PREFECT_API_AUTH_STRING"] = (home / "prefect" / "api-auth-string").read_text().strip()
    try:
        yield _deployed(prefect_api, environment)
    finally:
        Slipway(home, prefect_api)("stop", "configs/digits")
        server.kill()


def _deployed(prefect_api: str, environment: dict[str, str]) -> Nightly:
    given = Nightly(prefect_api.removesuffix("/api"), "", "", environment)
    _prefect(environment, "work-pool", "create", "slipway", "--type", "process", "--overwrite")
    _prefect(environment, "--no-prompt", "deploy", "--name", "nightly-digits")
    with httpx.Client(base_url=prefect_api, timeout=60, auth=given.auth, trust_env=False) as api:
        deployment = _json(api.get("/deployments/name/retrain-and-deploy/nightly-digits"))["id"]
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": _now()}}
        asked = {"state": state, "parameters": {"pipeline": "configs/digits", "overrides": QUICK}}
        run = _json(api.post(f"/deployments/{deployment}/create_flow_run", json=asked))["id"]
    return replace(given, deployment=deployment, run=run)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()


def _json(response: httpx.Response) -> dict[str, Any]:
    assert response.is_success, response.text
    return dict(response.json())


def _prefect(environment: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "prefect", *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"


@contextlib.contextmanager
def _worker(nightly: Nightly) -> Iterator[None]:
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "slipway"]
    worker = subprocess.Popen(
        command, cwd=REPOSITORY, env=nightly.environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        # Nothing is left for it to save. Started in the background, it may ignore the gentler signals.
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(60)


@pytest.fixture(scope="module")
def asked_for() -> list[str]:
    """Every address that the browser has asked for."""
    return []


@pytest.fixture(scope="module")
def page(asked_for: list[str], nightly: Nightly, browser: Any) -> Iterator[Any]:
    """A page of a browser that has never been anywhere, and has the password by now."""
    opened = browser.new_page(viewport={"width": 1400, "height": 1000})
    opened.set_default_timeout(PATIENCE_SECONDS * 1000)
    opened.on("request", lambda request: asked_for.append(request.url))
    opened.goto(f"{nightly.ui}/dashboard")
    opened.wait_for_url("**/login**")
    password = opened.locator("input").first
    password.fill(nightly.environment["PREFECT_API_AUTH_STRING"])
    password.press("Enter")
    opened.wait_for_url("**/dashboard")
    yield opened
    opened.close()


def _saved(page: Any, name: str) -> None:
    """Save a picture of the page, where pictures are asked for."""
    folder = os.environ.get("SLIPWAY_SCREENSHOTS")
    if folder:
        page.wait_for_load_state("networkidle")
        page.mouse.move(0, 0)
        page.screenshot(path=Path(folder) / f"{name}.png")


def _tab(page: Any, name: str) -> Any:
    """Open a tab of the page and return its panel."""
    page.get_by_role("tablist").get_by_text(name, exact=True).click()
    panel = page.get_by_role("tabpanel", name=name)
    panel.wait_for()
    return panel


class TestTheRun:
    """One run, from scheduled to deployed, on its page."""

    @pytest.fixture(scope="class")
    def followed(self, page: Any, nightly: Nightly) -> list[str]:
        """The states that its page showed, one after the other, without being loaded again."""
        page.goto(f"{nightly.ui}/runs/flow-run/{nightly.run}")
        state = page.get_by_role("banner").get_by_text(
            _any_of("Scheduled", "Late", "Pending", "Running", "Deployed", "Rejected", "Failed", "Crashed"),
            exact=True,
        )
        seen = [state.inner_text()]

        def ended() -> bool:
            shown = state.inner_text()
            if shown != seen[-1]:
                seen.append(shown)
            return shown not in ("Scheduled", "Late", "Pending", "Running")

        with _worker(nightly):
            eventually(ended, PATIENCE_SECONDS)
        return seen

    def test_it_is_followed_from_scheduled_to_deployed(self, followed: list[str]) -> None:
        """Waiting for a worker, at work, deployed."""
        assert followed[0] in ("Scheduled", "Late"), followed
        assert followed[-2:] == ["Running", "Deployed"], followed

    def test_its_graph_is_drawn(self, page: Any, followed: list[str]) -> None:
        """A picture of coloured bars on a canvas: not an empty one."""
        canvas = page.locator("canvas").first
        canvas.wait_for()
        # The page stops asking when the run has ended, and Prefect notes the last stages after that.
        for _ in range(3):
            if _within(30, lambda: _has_green_bars(canvas.screenshot())):
                break
            page.reload()
            canvas.wait_for()
        assert _has_green_bars(canvas.screenshot())
        _saved(page, "run")

    def test_every_stage_is_listed_by_a_name_that_people_understand(
        self, page: Any, followed: list[str]
    ) -> None:
        """The verb of the stage, and the pipeline."""
        panel = _tab(page, "Task Runs")
        panel.get_by_text("digits").first.wait_for()
        listed = panel.inner_text()
        assert [stage for stage in STAGES if stage not in listed] == []
        _saved(page, "stages")

    def test_the_log_tells_what_was_proved(self, page: Any, followed: list[str]) -> None:
        """The stages' own sentences, not only Prefect's."""
        panel = _tab(page, "Logs")
        panel.get_by_text("held-out examples").first.wait_for()
        _saved(page, "log")

    def test_the_verdict_is_an_artifact_of_it(self, page: Any, followed: list[str]) -> None:
        """Listed on the run's page, and open on a page of its own."""
        panel = _tab(page, "Artifacts")
        verdict = panel.get_by_role("link").filter(has_text="verdict").first
        verdict.wait_for()
        _saved(page, "artifacts")
        verdict.click()
        page.wait_for_url("**/artifacts/artifact/**")
        panel.wait_for(state="hidden")
        page.get_by_role("article").get_by_text("deployed").first.wait_for()
        _saved(page, "verdict")
        page.set_viewport_size({"width": 1280, "height": 1000})
        tables = "[...document.querySelectorAll('article table')]"
        try:
            assert page.locator("article table").count() == 2
            assert page.evaluate(f"{tables}.every(table => table.scrollWidth <= table.clientWidth)"), (
                "the UI cuts a wide table off"
            )
        finally:
            page.set_viewport_size({"width": 1400, "height": 1000})


def _any_of(*words: str) -> re.Pattern[str]:
    return re.compile(f"^({'|'.join(words)})$")


def _within(seconds: float, look: Callable[[], bool]) -> bool:
    """Return whether `look` says yes in time."""
    try:
        return eventually(look, seconds)
    except AssertionError:
        return False


def _has_green_bars(picture: bytes) -> bool:
    """Say whether a PNG of the graph has the green of a completed stage, above the run's own line."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)[:-_RUNS_OWN_LINE]
    red, green, blue = pixels.reshape(-1, 3).T
    return bool(((green > red + 60) & (green > blue + 40)).sum() > 100)


_RUNS_OWN_LINE = 40
"""Pixels at the bottom of the graph, where the state of the run itself is drawn."""


class TestTheDeployment:
    """The deployment's page."""

    def test_its_schedule_is_on(self, page: Any, nightly: Nightly) -> None:
        """By the name that prefect.yaml gives it."""
        page.goto(f"{nightly.ui}/deployments/deployment/{nightly.deployment}")
        page.get_by_text("nightly", exact=True).first.wait_for()
        assert page.get_by_role("switch").first.is_checked()
        _saved(page, "deployment")

    @pytest.fixture
    def form(self, page: Any, nightly: Nightly) -> Any:
        """The page of a custom run, as it comes."""
        page.goto(f"{nightly.ui}/deployments/deployment/{nightly.deployment}")
        page.get_by_role("button", name="Run", exact=True).click()
        page.get_by_text("Custom run").click()
        page.get_by_text("folder that holds a pipeline.yaml, or a YAML file").wait_for()
        return page

    def test_its_form_wants_a_pipeline(self, form: Any) -> None:
        """The parameters have their meaning beside them; without a pipeline no run is made."""
        page = form
        pipeline = page.get_by_role("group").get_by_role("textbox").first
        assert pipeline.input_value() == "configs/digits"
        _saved(page, "form")
        pipeline.fill("")
        page.get_by_role("button", name="Submit").click()
        page.get_by_text("'pipeline' is a required property").wait_for()
        assert urlsplit(page.url).path.endswith("/run")

    def test_its_form_refuses_an_override_beyond_its_limit(self, form: Any, nightly: Nightly) -> None:
        """It names field, value and limit, and makes no run; mended, it makes one with just that override."""
        steps = form.get_by_role("spinbutton").first
        _fill(steps, "-5")
        form.get_by_role("button", name="Submit").click()
        form.get_by_text(
            "overrides['training.max_steps']\". Failure reason: -5 is less than or equal to the minimum of 0"
        ).first.wait_for()
        assert urlsplit(form.url).path.endswith("/run")
        assert _overridden(nightly) == [QUICK]
        _fill(steps, "5")
        _submit_until(form, lambda: len(_overridden(nightly)) > 1)
        form.wait_for_url(lambda url: not urlsplit(url).path.endswith("/run"))
        assert _overridden(nightly) == [QUICK, {"training.max_steps": 5}]


def _fill(field: Any, text: str) -> None:
    """Type into a field and leave it, as a person does: the form takes a value when its field is left."""
    field.fill(text)
    field.press("Tab")


def _submit_until(form: Any, made: Callable[[], bool]) -> None:
    """Press the button, and again where that came to nothing: a form just refused may not hear it."""
    for _ in range(10):
        form.get_by_role("button", name="Submit").click()
        with contextlib.suppress(AssertionError):
            eventually(made, seconds=30)
            return
    pytest.fail("the form made no run")


def _overridden(nightly: Nightly) -> list[dict[str, Any]]:
    """What was overridden in the runs of the deployment that somebody asked for, the oldest first."""
    wanted = {"deployments": {"id": {"any_": [nightly.deployment]}}, "sort": "START_TIME_ASC"}
    found = httpx.post(
        f"{nightly.ui}/api/flow_runs/filter", json=wanted, timeout=60, auth=nightly.auth
    ).json()
    return [run["parameters"]["overrides"] for run in found if run["parameters"].get("overrides")]


def test_the_browser_asked_nobody_else(page: Any, nightly: Nightly, asked_for: list[str]) -> None:
    """Every page works offline: no font, script or picture is from elsewhere."""
    page.goto(f"{nightly.ui}/dashboard")
    page.get_by_text("Flow Runs").first.wait_for()
    _saved(page, "dashboard")
    fetched = [urlsplit(url) for url in asked_for if not url.startswith(("data:", "blob:"))]
    assert {address.netloc for address in fetched} == {urlsplit(nightly.ui).netloc}
