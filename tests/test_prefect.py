"""What Prefect is told: deployments, retries, states, artifacts; and that it tells nobody else."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pipelines import written
from slipway_command import REPOSITORY

from flows import ui_address

pytestmark = pytest.mark.timeout(300)  # Prefect starts in each fixture: slow on a busy machine

LOADED = """\
import json, os, pathlib, sys, yaml
import flows.environment
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import load_flow_from_entrypoint
from flows import policy, retrain, retrain_and_deploy
told = {}
for deployment in yaml.safe_load(pathlib.Path("prefect.yaml").read_text())["deployments"]:
    flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    times = deployment.get("schedules", [])
    crons = [CronSchedule(cron=each["cron"], timezone=each["timezone"]) for each in times]
    told[deployment["name"]] = {
        "flow": flow.name, "takes": list(flow.parameters.properties), "crons": len(crons),
        "parameters": flow.validate_parameters(deployment["parameters"]),
    }
names = ["recover", "preflight", "ingest", "train", "evaluate", "export", "validate", "canary", "publish",
         "deploy", "smoke_test", "retire"]
stages = {name: getattr(retrain_and_deploy, name) for name in names}
ours = policy.may_succeed_again
retries = {name: stage.retries if stage.retry_condition_fn is ours else 0 for name, stage in stages.items()}
cached = [name for name, stage in stages.items() if type(stage.cache_policy).__name__ != "_None"]
telemetry = {name: value for name, value in os.environ.items() if "TRACK" in name or "ANALYTICS" in name}
print(json.dumps({"deployments": told, "retries": retries, "cached": cached, "telemetry": telemetry,
                  "tensorflow": "tensorflow" in sys.modules}))
"""


def _printed(program: list[str], home: Path, **environment: str) -> dict[str, Any]:
    """Run Python in the repository; return the JSON object that is its last line."""
    bare = {
        name: value for name, value in os.environ.items() if "PREFECT" not in name and name != "DO_NOT_TRACK"
    }
    done = subprocess.run(
        [sys.executable, *program], cwd=REPOSITORY, capture_output=True, text=True, timeout=200,
        env={**bare, "SLIPWAY_HOME": str(home), "PYTHONPATH": str(REPOSITORY), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "log": done.stderr}


class TestDeployments:
    """prefect.yaml."""

    @pytest.fixture(scope="class")
    def loaded(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        """What a worker finds that loads each entrypoint, with placeholders off."""
        return _printed(["-c", LOADED], tmp_path_factory.mktemp("home"))

    def test_every_entrypoint_loads_and_takes_its_parameters(self, loaded: dict[str, Any]) -> None:
        """`prefect deploy` would succeed on a flow that cannot be imported; the night would not."""
        named = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
        assert list(loaded["deployments"]) == [deployment["name"] for deployment in named] != []
        for deployment in named:
            found = loaded["deployments"][deployment["name"]]
            assert set(deployment["parameters"]) <= set(found["takes"])
            assert found["parameters"].items() >= deployment["parameters"].items()

    def test_each_runs_the_whole_chain_by_a_schedule_that_prefect_can_read(
        self, loaded: dict[str, Any]
    ) -> None:
        """On a pipeline that is there; but the one that rolls back has no schedule."""
        for name, deployment in loaded["deployments"].items():
            wanted = ("roll-back", 0) if name == "roll-back" else ("retrain-and-deploy", 1)
            assert (deployment["flow"], deployment["crons"]) == wanted
            assert (REPOSITORY / deployment["parameters"]["pipeline"] / "pipeline.yaml").is_file()

    def test_what_runs_in_a_process_of_its_own_is_tried_again(self, loaded: dict[str, Any]) -> None:
        """Under the one policy; what changes what is served is not."""
        retried = [name for name, retries in loaded["retries"].items() if retries]
        assert retried == ["ingest", "train", "evaluate", "export", "validate", "canary"]

    def test_no_stage_is_cached(self, loaded: dict[str, Any]) -> None:
        """A stage that is skipped because its inputs look like last night's would ship nothing."""
        assert loaded["cached"] == []

    def test_loading_a_flow_imports_no_tensorflow(self, loaded: dict[str, Any]) -> None:
        """The process that runs a flow never does."""
        assert not loaded["tensorflow"]

    def test_nothing_is_sent_to_anyone(self, loaded: dict[str, Any]) -> None:
        """Prefect's telemetry is off before it is imported."""
        assert loaded["telemetry"] == {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


@pytest.fixture(scope="module")
def told(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the tiny flows did, and what Prefect's API says of them."""
    folder = tmp_path_factory.mktemp("flows")
    pipeline = written(folder / "small", {}).folder
    program = [str(Path(__file__).with_name("tiny_flows.py")), str(pipeline)]
    return {**_printed(program, folder / "home", PREFECT_API_URL=prefect_api), "home": folder / "home"}


class TestRetries:
    """What is tried again."""

    def test_only_what_may_succeed_again_is(self, told: dict[str, Any]) -> None:
        """A process that died is tried twice more; a bad model, a gate's no and a defect are final."""
        assert told["tries"] == [*["ProcessDied"] * 3, "ModelError", "Rejected", "ValueError"]


class TestStates:
    """How a run ends, as Prefect's UI shows it."""

    @pytest.mark.parametrize(
        ("flow", "name", "kind", "message"),
        [
            ("deployed", "Deployed", "COMPLETED", "small version 8: deployed"),
            ("trained", "Trained", "COMPLETED", "small: trained"),
            ("checked", "Checked", "COMPLETED", "small: checked"),
            ("skipped", "Skipped", "COMPLETED", "small: skipped"),
            ("rejected", "Rejected", "FAILED", "accuracy is 0.5"),
            ("rolled_back", "RolledBack", "FAILED", "too slow"),
            ("broken", "Failed", "FAILED", "a defect"),
        ],
    )
    def test_the_state_is_named_after_the_outcome(
        self, told: dict[str, Any], flow: str, name: str, kind: str, message: str
    ) -> None:
        """Failed where the run was, so that automations see it; the message is the error's."""
        run = told["runs"][flow]
        assert (run["name"], run["type"]) == (name, kind)
        assert message in run["message"]

    def test_a_run_is_named_by_its_pipeline(self, told: dict[str, Any]) -> None:
        """And by when it began; if nothing came of it, also by where and why."""
        assert all(run["run_name"].startswith("small 20") for run in told["runs"].values())
        why = {flow: run["run_name"].partition(": ")[2] for flow, run in told["runs"].items()}
        assert why == {
            **dict.fromkeys(("deployed", "trained", "checked", "skipped"), ""),
            "rejected": "rejected in fail: accuracy", "rolled_back": "rolled back in fail: SmokeTestFailed",
            "broken": "failed: ZeroDivisionError", "nested": "rejected: Rejected",
        }  # fmt: skip

    def test_a_run_is_found_by_its_pipelines_tag(self, told: dict[str, Any]) -> None:
        """Whatever came of it, and however it was started."""
        assert {tuple(sorted(run["tags"])) for run in told["runs"].values()} == {("slipway", "small")}

    @pytest.mark.parametrize(
        "flow", ["deployed", "trained", "checked", "skipped", "rejected", "rolled_back", "broken"]
    )
    def test_the_verdict_is_an_artifact_of_the_run(self, told: dict[str, Any], flow: str) -> None:
        """In markdown, beside the verdict.json in the run's folder."""
        outcome = "failed" if flow == "broken" else flow
        (verdict,) = [made for made in told["runs"][flow]["artifacts"] if made[0] == "small-verdict"]
        _, description, markdown = verdict
        assert description.endswith(f": {outcome.replace('_', ' ')}")
        assert f"small: {outcome.replace('_', ' ')}" in markdown.splitlines()[0]
        file = told["home"] / "runs" / "small" / flow.replace("_", "-") / "verdict.json"
        assert json.loads(file.read_text())["outcome"] == outcome

    def test_only_a_defect_is_logged_with_its_frames(self, told: dict[str, Any]) -> None:
        """A rejection is two lines: the error, and the headline with the reason and where the verdict is."""
        log = told["log"]
        assert "ZeroDivisionError: a defect" in log and "Traceback" in log
        assert "tasks.core.errors.Rejected" not in log
        assert "Rejected: accuracy is 0.5\n  hint: train more" in log
        (line,) = [line for line in log.splitlines() if "small: rejected: accuracy is 0.5" in line]
        assert "Verdict: http://" in line and "/runs/flow-run/" in line

    def test_the_engines_report_of_a_failed_state_is_dropped(self) -> None:
        """The worker's last line is then the reason; other reports stay as they are."""
        from prefect.exceptions import FailedRun

        from tasks.runs.quiet_outcomes import without_frames

        def record(error: Exception) -> logging.LogRecord:
            raised = (type(error), error, None)
            return logging.LogRecord("prefect.engine", logging.ERROR, "", 1, "exited", None, raised)

        assert not without_frames(record(FailedRun("accuracy is 0.5")))
        defect = record(ValueError("odd"))
        assert without_frames(defect) and defect.exc_info

    def test_a_defect_leaves_its_traceback_in_the_runs_folder(self, told: dict[str, Any]) -> None:
        """The hint names the file; an error of ours needs none."""
        folder = told["home"] / "runs" / "small" / "broken"
        verdict = json.loads((folder / "verdict.json").read_text())
        file = folder / "logs" / "traceback.txt"
        assert verdict["error"]["hint"] == f"a defect: please report it, with {file}"
        text = file.read_text()
        assert "tests/tiny_flows.py" in text and text.endswith("ZeroDivisionError: a defect\n")
        assert not (told["home"] / "runs" / "small" / "rejected" / "logs" / "traceback.txt").exists()

    def test_a_dry_run_ends_before_anything_is_published(self, told: dict[str, Any]) -> None:
        """What comes after its end is not run, and nothing is told of the night."""
        verdict = json.loads((told["home"] / "runs" / "small" / "checked" / "verdict.json").read_text())
        assert (verdict["version"], verdict["error"], verdict["stages"]) == (None, None, [])

    def test_the_checks_of_a_gate_are_in_the_verdict(self, told: dict[str, Any]) -> None:
        """On disk and in the artifact."""
        verdict = json.loads((told["home"] / "runs" / "small" / "rejected" / "verdict.json").read_text())
        assert verdict["error"] == {"class": "Rejected", "message": "accuracy is 0.5", "hint": "train more"}
        assert [check["passed"] for check in verdict["checks"]] == [False]
        (artifact,) = told["runs"]["rejected"]["artifacts"]
        assert "**accuracy**: accuracy >= 0.9; observed 0.5, limit 0.9" in artifact[2]

    def test_a_second_run_meanwhile_is_refused(self, told: dict[str, Any]) -> None:
        """It raises in the flow, and leaves neither folder nor artifact."""
        assert "a run of small is under way (run outer, pid" in told["runs"]["nested"]["message"]
        assert not (told["home"] / "runs" / "small" / "inner").exists()
        assert len(told["runs"]["nested"]["artifacts"]) == 1


class TestEnvironment:
    """What Prefect reads when it is imported."""

    @pytest.fixture
    def environment(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        """An environment of this test's own, with nothing in it but the home."""
        own = {"SLIPWAY_HOME": str(home)}
        monkeypatch.setattr(os, "environ", own)
        return own

    def _prepare(self, environment: dict[str, str]) -> dict[str, str]:
        from flows.environment import prepare

        prepare()
        return environment

    def test_state_is_under_the_home_and_nothing_is_sent(
        self, environment: dict[str, str], home: Path
    ) -> None:
        """Without any setting of the user's."""
        prepared = self._prepare(environment)
        assert prepared["PREFECT_HOME"] == str(home / "prefect")
        assert prepared["DO_NOT_TRACK"] == "1"
        assert prepared["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
        assert "PREFECT_API_URL" not in prepared

    def test_what_is_on_this_machine_is_asked_of_no_proxy(self, environment: dict[str, str]) -> None:
        """Prefect's client would otherwise look for its own server at the proxy; the user's list stays."""
        environment.update({"HTTP_PROXY": "http://proxy:3128", "no_proxy": "corp.example"})
        prepared = self._prepare(environment)
        assert prepared["no_proxy"] == "corp.example,127.0.0.1,localhost,::1"
        assert prepared["NO_PROXY"] == "127.0.0.1,localhost,::1"
        assert self._prepare(environment)["no_proxy"].count("localhost") == 1

    @pytest.mark.parametrize("name", ["PREFECT_HOME", "PREFECT_PROFILE"])
    def test_what_the_user_has_set_wins(self, environment: dict[str, str], name: str) -> None:
        """Nobody's own Prefect is put aside."""
        environment.update({name: "mine", "DO_NOT_TRACK": "0"})
        prepared = self._prepare(environment)
        assert {key: value for key, value in prepared.items() if key in
                ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE", "DO_NOT_TRACK")} == {
            name: "mine", "DO_NOT_TRACK": "0"}  # fmt: skip

    def test_the_users_server_is_used_and_state_stays_at_home(self, environment: dict[str, str]) -> None:
        """With an API address of the user's, Prefect's own files still go under $SLIPWAY_HOME."""
        environment.update({"PREFECT_API_URL": "http://127.0.0.1:9/api"})
        prepared = self._prepare(environment)
        assert prepared["PREFECT_API_URL"] == "http://127.0.0.1:9/api"
        assert prepared["PREFECT_HOME"] == str(Path(environment["SLIPWAY_HOME"]) / "prefect")

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"api": "http://127.0.0.1:1/api"}', '{"api": "x"}'])
    def test_a_ui_that_is_gone_is_not_used(
        self, environment: dict[str, str], home: Path, content: str
    ) -> None:
        """A record that was left behind, or is corrupt, stops no run."""
        (home / "servers").mkdir(parents=True)
        (home / "servers" / ".prefect-ui.json").write_text(content)
        assert "PREFECT_API_URL" not in self._prepare(environment)

    def test_nothing_is_requested_of_a_ui_that_runs(self, environment: dict[str, str]) -> None:
        """What has a gone UI's port by now, and never answers, cannot hold up an import."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            other.setblocking(False)
            api = f"http://127.0.0.1:{other.getsockname()[1]}/api"
            with ui_address.recorded_ui(api, own_auth=False) as ready:
                assert "PREFECT_API_URL" not in self._prepare(environment)
                ready()
                del environment["PREFECT_HOME"]
                assert self._prepare(environment)["PREFECT_API_URL"] == api
                with ui_address.recorded_ui("http://127.0.0.1:9/api", own_auth=False) as second:
                    second()
                    assert ui_address.ui_api() == api
            assert ui_address.ui_api() is None
            with pytest.raises(BlockingIOError):
                other.accept()

    def test_the_record_of_a_killed_ui_is_not_used(self, environment: dict[str, str], home: Path) -> None:
        """Whoever has its port by now: its lock is free."""
        (home / "servers").mkdir(parents=True)
        record = {"api": "http://127.0.0.1:4200/api", "answers": True, "own_auth": True}
        (home / "servers" / ".prefect-ui.json").write_text(json.dumps(record))
        assert "PREFECT_API_URL" not in self._prepare(environment)
