"""Runs of the digits whose candidate is trained, exported and validated already: publishing comes next.

One is trained for all of a test run; each test gets copies, by hard links, that `slipway run --resume` goes
on with. For tests of what happens from then on, which need no training of their own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from made_once import made_once
from slipway_command import DIGITS, QUICK, Finished, Slipway

from configs.loading.pipelines import load_pipeline, parse_override
from tasks.runs.run_folders import new_run_id

LEFT_OUT = ("verdict.json", ".flow_run", "logs", "config.yaml", "stages")


def retrained() -> tuple[Path, Finished]:
    """Return a home in which `slipway retrain` made a candidate, and what the command came to."""
    return made_once("retrained-digits", _retrain)


def _retrain(folder: Path) -> tuple[Path, Finished]:
    home = folder / "home"
    home.mkdir()
    slipway = Slipway(home, None)
    done = slipway.run(DIGITS, *QUICK, flow="retrain")
    assert done.exit_code == 0, done.output
    return home, done


def run_from_publish(slipway: Slipway, *settings: str, **environment: str) -> Finished:
    """Run the digits as `Slipway.run` does, from `publish` on (with a canary, from there)."""
    run_id = _planted(slipway.home, settings)
    file = slipway.home / "verdict.json"
    file.unlink(missing_ok=True)
    return slipway("run", DIGITS, run_id, "--resume", "--json", file, **environment)


def _planted(home: Path, settings: Sequence[str]) -> str:
    """Leave a run in `home` that seems to have been killed after `validate`; return its id."""
    made_in, done = retrained()
    old = done.verdict["run_id"]
    chosen = ("deployment.target=process", "deployment.canary=false", *QUICK, *settings)
    config = load_pipeline(DIGITS, dict(map(parse_override, chosen))).config
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIPWAY_HOME", str(home))
        run_id = new_run_id("digits")
    source, run = made_in / "runs" / "digits" / old, home / "runs" / "digits" / run_id
    shutil.copytree(source, run, copy_function=_link, ignore=shutil.ignore_patterns(*LEFT_OUT))
    candidate = Path("models", "digits")
    (home / candidate).mkdir(parents=True, exist_ok=True)
    shutil.copytree(
        made_in / candidate / f".candidate-{old}", home / candidate / f".candidate-{run_id}",
        copy_function=_link,
    )  # fmt: skip
    manifest = home / candidate / f".candidate-{run_id}" / "assets.extra" / "manifest.json"
    _written_anew(manifest, manifest, [(old, run_id)])
    for stage in (source / "stages").glob("*.json"):
        _written_anew(stage, run / "stages" / stage.name, [(str(made_in), str(home)), (old, run_id)])
    resolved = config.model_dump(mode="json", by_alias=True)
    (run / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    return run_id


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def _written_anew(source: Path, target: Path, replaced: Sequence[tuple[str, str]]) -> None:
    text = source.read_text()
    for old, new in replaced:
        text = text.replace(old, new)
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)
    target.write_text(text)
