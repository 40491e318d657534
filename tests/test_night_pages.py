"""The page of a night of each kind, left by real runs, in the browser: deployed, rejected, failed, killed."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from finished_runs import run_from_publish
from slipway_command import DIGITS, Finished, Slipway
from waiting import eventually

from tasks.reports import run_report

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def nights(module_slipway: Slipway) -> dict[str, tuple[Path, Finished | None]]:
    """Four nights, one after the other: the folder of each run, and what the command came to."""
    runs = module_slipway.home / "runs" / "digits"
    known: set[Path] = set()

    def left(done: Finished | None) -> tuple[Path, Finished | None]:
        (folder,) = new()
        known.add(folder)
        return folder, done

    def new() -> set[Path]:
        return {path for path in runs.iterdir() if path.is_dir()} - known

    found = {"deployed": left(run_from_publish(module_slipway))}
    long = ("--set", "training.max_steps=1000000", "--set", "deployment.target=process")
    process = module_slipway.start("run", DIGITS, *long)
    try:
        eventually(lambda: [index for run in new() for index in run.glob("checkpoints/*.index")], 300)
    finally:
        process.kill()
        process.communicate(timeout=90)
    found["killed"] = left(None)
    found["rejected"] = left(module_slipway.run(DIGITS, "data.gates.min_examples=99999"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found["failed"] = left(module_slipway.run(DIGITS, f"deployment.grpc_port={port}"))
    return found


CAUSES = {
    "deployed": "",
    "killed": "ended without a verdict",
    "rejected": "99999",
    "failed": "deployment.grpc_port",
}


@pytest.mark.parametrize("kind", CAUSES)
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_a_night(
    nights: dict[str, tuple[Path, Finished | None]], browser: Any, kind: str, width: int
) -> None:
    """Outcome in the heading, the cause, what serves still, what to type; within the window, offline."""
    folder, done = nights[kind]
    assert done is None or done.verdict["outcome"] == kind, done.output
    live = nights["deployed"][1]
    assert live is not None
    page = browser.new_page(viewport={"width": width, "height": 900})
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    address = (folder / run_report.NAME).as_uri()
    page.goto(address)
    try:
        assert kind in page.locator("h1").inner_text().lower()
        assert str(live.verdict["version"]) in page.locator("#serving").inner_text()
        if cause := CAUSES[kind]:
            assert cause in page.locator("#cause").inner_text().replace(",", "")
        assert "slipway " in page.locator("#next").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert [url for url in fetched if not url.startswith(("data:", address))] == []
        if pictures := os.environ.get("SLIPWAY_SCREENSHOTS_OF_NIGHTS"):
            page.screenshot(path=Path(pictures) / f"{kind}-{width}.png", full_page=True)
    finally:
        page.close()
