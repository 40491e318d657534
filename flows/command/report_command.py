"""`slipway report`: the page of a run, in the browser or as its path, and what it says first."""

from __future__ import annotations

import os
import sys
import webbrowser

from rich.console import Console
from rich.text import Text

from configs.loading.errors import ConfigError
from configs.loading.pipelines import Pipeline
from configs.schema.home import runs_folder
from tasks.core.errors import EnvironmentFault
from tasks.reports import run_report
from tasks.runs import run_folders, run_order
from tasks.servers import live_service

console = Console(highlight=False)


def run(loaded: Pipeline, run_id: str | None, browser: bool) -> int:
    """Render the page of the run anew, print its first lines and its path, and open it.

    Rendered anew, it shows what serves now. Raises ConfigError if there is no such run.
    """
    name = loaded.config.name
    chosen = run_folders.describe(loaded, _chosen(name, run_id))
    head = run_report.summary(loaded, chosen, live_service.of(name))
    page = run_report.write(loaded, chosen)
    console.print(Text(head.sentence, style="bold"))
    console.print(Text(head.serving), soft_wrap=True)
    for text in filter(None, (head.cause, head.hint)):
        console.print(Text(text), soft_wrap=True)
    for each in head.next:
        console.print(Text.assemble(f"\n{each.command}", (f"   {each.effect}", "dim")), soft_wrap=True)
    if page is None:
        raise EnvironmentFault(f"{run_report.file(chosen)} cannot be written", "see the warning above")
    console.print(f"\n{page}", markup=False, soft_wrap=True)
    if browser and _has_screen():
        webbrowser.open(page.as_uri())
    return 0


def _chosen(name: str, run_id: str | None) -> str:
    folders = runs_folder(name).glob("*/")
    found = [each.name for each in sorted(folders, key=run_order.started) if _is_run(each.name, name)]
    if not found:
        raise ConfigError(f"no run of {name} in {runs_folder(name)}", "slipway run starts one")
    if run_id is None:
        return found[-1]
    if run_id not in found:
        message = f"{name} has no run {run_id!r} in {runs_folder(name)}"
        raise ConfigError(message, f"the newest runs: {', '.join(found[-5:])}")
    return run_id


def _is_run(folder: str, name: str) -> bool:
    return any((runs_folder(name) / folder / file).is_file() for file in ("config.yaml", "verdict.json"))


def _has_screen() -> bool:
    """Return whether a person sits before a screen on this machine."""
    on_screen = sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    return bool(on_screen) and sys.stdout.isatty()
