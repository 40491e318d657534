"""prefect.yaml: what it says, that Prefect takes it, and how `slipway deploy-nightly` adds to it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from nightly_station import PULL
from pipelines import written
from slipway_command import REPOSITORY, user_environment
from waiting import eventually

from configs.loading.deployments import load_deployments
from configs.loading.errors import ConfigError
from configs.loading.pipelines import load_pipeline
from flows.command import deploy_nightly_command
from flows.command.cli import main

SHIPPED = REPOSITORY / "prefect.yaml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A copy of the shipped prefect.yaml."""
    return Path(shutil.copy(SHIPPED, tmp_path / "prefect.yaml"))


class TestShipped:
    """The prefect.yaml of this repository."""

    def test_every_pipeline_has_a_deployment(self) -> None:
        """Named after it, run one at a time, by a schedule; only the demo's is awake."""
        told = {each.name: each for each in load_deployments(SHIPPED).deployments}
        pipelines = {
            load_pipeline(file).config.name: file for file in REPOSITORY.glob("configs/*/pipeline.yaml")
        }
        assert set(told) == {"roll-back", *(f"nightly-{name}" for name in pipelines)}
        for name, pipeline in pipelines.items():
            each = told[f"nightly-{name}"]
            assert REPOSITORY / each.parameters["pipeline"] == pipeline.parent
            assert each.concurrency_limit.model_dump(exclude_none=True) == {
                "limit": 1, "collision_strategy": "CANCEL_NEW"}  # fmt: skip
            assert [schedule.active for schedule in each.schedules] == [name == "digits"]

    @pytest.mark.parametrize("name", ["prefect.yaml", "containers/prefect.yaml"])
    def test_rolling_back_is_for_a_person(self, name: str) -> None:
        """By no schedule, one at a time, of a pipeline that is there, to the version before."""
        told = load_deployments(REPOSITORY / name).deployments
        (button,) = [each for each in told if each.name == "roll-back"]
        assert button.entrypoint == "flows/roll_back.py:roll_back"
        assert button.schedules == ()
        assert button.concurrency_limit.limit == 1
        assert set(button.parameters) == {"pipeline"}
        assert (REPOSITORY / button.parameters["pipeline"] / "pipeline.yaml").is_file()

    @pytest.mark.parametrize(
        ("right", "wrong"),
        [
            ("    description: Train", "    descripton: Train"),
            ("limit: 1,", "limti: 1,"),
            ("collision_strategy: CANCEL_NEW", "collision_strategy: CANCEL"),
            ("      job_variables:", "      job_variable:"),
            ("        env:", "        enw:"),
            ("slug: nightly, active: true", "slug: nightly, activ: true"),
            ("timezone: Etc/UTC", "timezone: Mars/Base"),
            ("pull:", "pulls:"),
            ("parameters: {pipeline: configs/digits}", "parameter: {pipeline: configs/digits}"),
            ("name: nightly-diabetes", "name: nightly-digits"),
            ("entrypoint: flows/roll_back.py:roll_back", "entrypoint: flows/roll_back.py"),
            ("[slipway, on-call]", "[slipway, on-call"),
            ("deployments:", "deployment:"),
        ],
    )
    def test_a_wrong_key_or_value_is_an_error(self, file: Path, right: str, wrong: str) -> None:
        """Prefect 3.8.8 deploys with any of the wrong keys, and says nothing."""
        text = file.read_text()
        assert right in text
        file.write_text(text.replace(right, wrong, 1))
        with pytest.raises(ConfigError, match=re.escape(str(file))):
            load_deployments(file)

    def test_the_error_names_line_key_and_the_nearest_key(self, file: Path) -> None:
        """As for a pipeline.yaml."""
        file.write_text(file.read_text().replace("    description: Train", "    descripton: Train"))
        line = file.read_text()[: file.read_text().index("descripton")].count("\n") + 1
        with pytest.raises(ConfigError) as caught:
            load_deployments(file)
        said = f"{file}:{line}:5: 'deployments.0.descripton' is not a known key: did you mean 'description'?"
        assert said in caught.value.message


def test_those_of_compose_are_for_the_server_beside_the_worker() -> None:
    """As strictly read; the service that they name is one of compose.yaml's, at the image's folder."""
    containers = REPOSITORY / "containers"
    told = load_deployments(containers / "prefect.yaml")
    services = yaml.safe_load((containers / "compose.yaml").read_text())["services"]
    assert (
        f"WORKDIR {told.pull[0][PULL]['directory']}\n" in (containers / "pipeline" / "Dockerfile").read_text()
    )
    for each in told.deployments:
        assert f"--pool {each.work_pool.name} " in services["worker"]["command"][-1]
        if not each.schedules:
            continue  # one that rolls back asks the server that the last run deployed to
        served = load_pipeline(REPOSITORY / each.parameters["pipeline"], each.parameters["overrides"]).config
        assert served.deployment.target == "external"
        assert served.deployment.host in services


class TestDeployNightly:
    """`slipway deploy-nightly PIPELINE --cron … --timezone …`."""

    @pytest.fixture
    def pipeline(self, tmp_path: Path) -> Path:
        """A pipeline of a user's own, beside prefect.yaml."""
        return written(tmp_path / "mine", {"name": "churn"}).folder

    def test_an_entry_is_added_and_all_else_stays(
        self, file: Path, pipeline: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Comments, order, quotes and anchors are as they were, to the byte."""
        before = file.read_text()
        assert main(["deploy-nightly", str(pipeline), "--cron", "30 2 * * 1-5",
                     "--timezone", "Europe/Berlin", "--file", str(file)]) == 0  # fmt: skip
        added = file.read_text().removeprefix(before)
        assert added.splitlines() == [
            "",
            "  - name: nightly-churn",
            "    <<: *nightly",
            "    description: Train tonight's churn, prove it, and serve it if every gate passes.",
            "    parameters: {pipeline: mine}",
            "    schedules:",
            '      - {cron: "30 2 * * 1-5", timezone: Europe/Berlin, slug: nightly, active: true}',
        ]
        assert "prefect --no-prompt deploy --name nightly-churn" in capsys.readouterr().out
        own = load_deployments(file).deployments[-1]
        assert own.concurrency_limit.limit == 1
        assert own.entrypoint == "flows/retrain_and_deploy.py:retrain_and_deploy"

    def test_a_pipeline_elsewhere_is_named_by_its_absolute_path(
        self, file: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """The worker's working directory is that of prefect.yaml."""
        elsewhere = written(tmp_path_factory.mktemp("elsewhere"), {"name": "churn"}).folder
        deploy_nightly_command.deploy_nightly(str(elsewhere), "0 1 * * *", "Etc/UTC", file)
        assert load_deployments(file).deployments[-1].parameters == {"pipeline": str(elsewhere)}

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--cron", "99 3 * * *"], "--cron '99 3 * * *': Invalid cron string"),
            (["--cron", "0 3 * *"], "--cron '0 3 * *': Invalid cron string"),
            (["--cron", "0 3 * * *", "--timezone", "Europe/Belrin"], "such are Europe/Berlin"),
            (["--cron", "0 3 * * *", "--timezone", "CEST5"], "not a time zone of the IANA data base"),
            ([], "--cron"),
        ],
    )
    def test_bad_times_are_refused(
        self, file: Path, pipeline: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Exit code 2, and the file is as it was."""
        before = file.read_bytes()
        assert main(["deploy-nightly", str(pipeline), *options, "--file", str(file)]) == 2
        out, err = capsys.readouterr()
        assert said in out + err
        assert file.read_bytes() == before

    def test_a_second_one_of_the_same_name_is_refused(
        self, file: Path, pipeline: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Prefect would keep the last of the two."""
        again = ["deploy-nightly", str(pipeline), "--cron", "0 1 * * *", "--file", str(file)]
        assert main(again) == 0
        before = file.read_bytes()
        assert main(again) == 2
        assert "has a deployment nightly-churn already" in capsys.readouterr().err
        assert file.read_bytes() == before

    def test_a_file_with_a_misspelt_key_is_refused_first(
        self, file: Path, pipeline: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """With the place of the key."""
        file.write_text(file.read_text().replace("limit: 1,", "limti: 1,"))
        assert main(["deploy-nightly", str(pipeline), "--cron", "0 1 * * *", "--file", str(file)]) == 2
        assert "limti' is not a known key: did you mean 'limit'?" in capsys.readouterr().err

    def test_a_file_without_the_shared_part_is_refused(
        self, file: Path, pipeline: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """What entries share is taken from there."""
        document = yaml.safe_load(file.read_text())
        del document["definitions"]["nightly"]
        file.write_text(yaml.safe_dump(document, sort_keys=False))
        assert main(["deploy-nightly", str(pipeline), "--cron", "0 1 * * *", "--file", str(file)]) == 2
        assert "lacks 'definitions.nightly'" in capsys.readouterr().err


def test_prefect_deploys_all_from_a_clone(prefect_api: str, tmp_path: Path) -> None:
    """A pool and `prefect deploy --all`, twice: each deployment once, with all that the file says of it."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", REPOSITORY, clone], check=True)
    shutil.copy(SHIPPED, clone)
    environment = {**user_environment(tmp_path / "home"), "PREFECT_API_URL": prefect_api,
                   "PWD": str(clone)}  # fmt: skip

    def prefect(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments], cwd=clone, env=environment, timeout=200,
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    prefect("work-pool", "create", "slipway", "--type", "process", "--overwrite")  # of other tests
    prefect("--no-prompt", "deploy", "--all")
    prefect("--no-prompt", "deploy", "--all")
    _assert_deployed(prefect_api, clone)
    nights = eventually(lambda: _planned(prefect_api), seconds=90, every=0.5)
    assert {each["expected_start_time"][11:19] for each in nights} == {"03:00:00"}


def _planned(prefect_api: str) -> list[dict[str, Any]]:
    """Return the nights that Prefect has planned for the digits: with SQLAlchemy 2.1 there were none."""
    wanted = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
              "deployments": {"name": {"any_": ["nightly-digits"]}},
              "work_pools": {"name": {"any_": ["slipway"]}}}  # fmt: skip
    told = httpx.post(f"{prefect_api}/flow_runs/filter", json=wanted).json()
    return [each for each in told if each["auto_scheduled"]]  # other tests ask for runs now


def _assert_deployed(prefect_api: str, clone: Path) -> None:
    told: list[dict[str, Any]] = httpx.post(
        f"{prefect_api}/deployments/filter", json={"work_pools": {"name": {"any_": ["slipway"]}}}
    ).json()
    found = {each["name"]: each for each in told}
    wanted = load_deployments(SHIPPED).deployments
    assert set(found) == {each.name for each in wanted}
    for each in wanted:
        there = found[each.name]
        assert there["parameters"] == each.parameters
        assert there["description"] == each.description
        assert sorted(there["tags"]) == sorted(each.tags)
        assert there["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
        assert there["job_variables"]["env"] == each.work_pool.job_variables.env
        (pull,) = there["pull_steps"]
        assert pull["prefect.deployments.steps.set_working_directory"] == {"directory": str(clone)}
        found_times = [(on["active"], on["schedule"]["cron"], on["schedule"]["timezone"])
                       for on in there["schedules"]]  # fmt: skip
        assert found_times == [(on.active, on.cron, "Etc/UTC") for on in each.schedules]
