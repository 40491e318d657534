"""Runs that were killed, and go on: what was finished is not repeated, and nothing is published twice."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from pipelines import run_of, trained_digits, written
from running_programs import running_programs
from slipway_command import DIGITS, REPOSITORY, Finished, Slipway
from test_training import StopAt, arguments, child, train
from waiting import eventually

from configs.loading.errors import ConfigError
from tasks.core.artifacts import Candidate, Checkpoint, Evaluation, Run
from tasks.core.errors import ProcessDied
from tasks.runs import resumable_runs, run_folders
from tasks.runs.finished_stages import FinishedStages

LONG = ("training.max_steps=6000", "training.save_checkpoints_steps=100", "deployment.target=process")


def _started(slipway: Slipway, *settings: str) -> subprocess.Popen[str]:
    options = [part for setting in (*LONG, *settings) for part in ("--set", setting)]
    return slipway.start("run", DIGITS, *options)


def _resumed(slipway: Slipway) -> subprocess.Popen[str]:
    return slipway.start("run", DIGITS, "--resume", "--json", slipway.home / "verdict.json")


def _saved(slipway: Slipway) -> list[int]:
    indices = slipway.home.glob("runs/digits/*/checkpoints/model.ckpt-*.index")
    return sorted(int(index.stem.rpartition("-")[2]) for index in indices)


def _kill(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Kill -9 the flow's process; return what it had started, which ends by itself."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait(60)
    return family


def _said(slipway: Slipway, line: str) -> bool:
    return any(line in log.read_text() for log in slipway.home.glob("runs/digits/*/logs/train.log"))


@dataclass(frozen=True)
class Killed:
    """A flow that was killed while its trainer stood still: that one saves once it goes on."""

    step: int
    """The newest that was saved by then."""
    folder: Path
    trainer: psutil.Process
    family: list[psutil.Process]


class TestAFlowThatWasKilled:
    """kill -9 of the flow while it trains, again when it has just published; then resumed to its end."""

    @pytest.fixture(scope="class")
    def killed(self, module_slipway: Slipway) -> Killed:
        """The first kill: in training, in a step that takes long."""
        process = _started(module_slipway)
        eventually(lambda: _saved(module_slipway)[-1:] > [0], seconds=180)
        (trainer,) = running_programs(process.pid)
        trainer.suspend()
        family = _kill(process)
        (config,) = module_slipway.home.glob("runs/digits/*/config.yaml")
        return Killed(_saved(module_slipway)[-1], config.parent, trainer, family)

    @pytest.fixture(scope="class")
    def finished(self, module_slipway: Slipway, killed: Killed) -> Finished:
        """The second kill, at the instant when the version is there; and the run that goes on to the end."""
        base = module_slipway.home / "models" / "digits"
        process = _resumed(module_slipway)
        waits = f"trainer {killed.trainer.pid} still writes to {killed.folder / 'checkpoints'}"
        eventually(lambda: _said(module_slipway, waits), seconds=60)
        killed.trainer.resume()
        eventually(lambda: base.is_dir() and module_slipway.versions("digits"), seconds=180, every=0.002)
        killed.family.extend(_kill(process))
        process = _resumed(module_slipway)
        output, _ = process.communicate(timeout=120)
        return Finished(
            process.returncode, output, json.loads((module_slipway.home / "verdict.json").read_text())
        )

    def test_its_trainer_is_waited_for(self, finished: Finished, killed: Killed) -> None:
        """Its death told the trainer, which saved, though nobody listened any more; nothing is left of it."""
        _, alive = psutil.wait_procs(killed.family, timeout=60)
        assert not alive
        log = (killed.folder / "logs" / "train.log").read_text()
        _, waited, after = log.partition(f"trainer {killed.trainer.pid} still writes to ")
        assert waited
        assert "Loss for final step" in after.partition("Restoring parameters from")[0]
        assert "is damaged" not in after

    def test_it_deploys_once(self, finished: Finished, module_slipway: Slipway) -> None:
        """One version is there, by the first number that was given, and it is served."""
        assert finished.exit_code == 0, finished.output
        assert finished.verdict["outcome"] == "deployed"
        assert module_slipway.versions("digits") == [finished.verdict["version"]]
        assert finished.verdict["previous_version"] is None

    def test_finished_stages_are_not_repeated(self, finished: Finished, killed: Killed) -> None:
        """The table says which are from before; their checks and metrics are in the verdict all the same."""
        assert finished.verdict["run_id"] == killed.folder.name
        before = [stage["name"] for stage in finished.verdict["stages"] if "from before" in stage["summary"]]
        assert before == ["ingest", "check-data", "train", "evaluate", "export", "validate", "canary"]
        assert finished.checks["accuracy"]["passed"]
        assert finished.checks["predict"]["passed"]
        assert finished.verdict["metrics"]["accuracy"] > 0.95

    def test_training_went_on_from_where_it_was(self, finished: Finished, killed: Killed) -> None:
        """The run's own configuration, --set and all, was used."""
        proved = {stage["name"]: stage["summary"] for stage in finished.verdict["stages"]}["train"]
        assert proved.startswith("from before: checkpoint at step 6,000")
        assert killed.step <= int(proved.rpartition("resumed from step ")[2].replace(",", "")) < 6000

    def test_a_run_that_was_deployed_is_not_resumed(
        self, finished: Finished, module_slipway: Slipway
    ) -> None:
        """Exit code 2; named or not."""
        refused = module_slipway("run", DIGITS, "--resume")
        assert refused.exit_code == 2
        assert "was deployed after all that failed" in refused.output
        named = module_slipway("run", DIGITS, finished.verdict["run_id"], "--resume")
        assert "has ended: deployed" in named.output
        unknown = module_slipway("run", DIGITS, "yesterday", "--resume")
        assert "has no run 'yesterday'" in unknown.output


@dataclass
class Tormentor:
    """Does something to the trainer of a flow, each time it has passed another step."""

    process: subprocess.Popen[str]
    slipway: Slipway
    struck: list[int] = field(default_factory=list)

    def strike(self, number: signal.Signals) -> None:
        """Send the signal to the trainer, once it has saved a checkpoint beyond the last strike."""
        last = self.struck[-1] if self.struck else 0
        eventually(lambda: _saved(self.slipway)[-1:] > [last], seconds=120)
        (trainer,) = running_programs(self.process.pid)
        self.struck.append(_saved(self.slipway)[-1])
        trainer.send_signal(number)


def test_a_trainer_that_is_killed_and_that_stalls_is_resumed_in_the_same_flow_run(slipway: Slipway) -> None:
    """kill -9 twice, then a standstill: Prefect tries again, each time from the last checkpoint."""
    process = slipway.start(
        "retrain", DIGITS, "--json", slipway.home / "verdict.json", "--set", "training.max_steps=8000",
        "--set", "training.save_checkpoints_steps=200", "--set", "training.stall_timeout_seconds=20",
    )  # fmt: skip
    tormentor = Tormentor(process, slipway)
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP):
        tormentor.strike(number)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    verdict = json.loads((slipway.home / "verdict.json").read_text())
    proved = {stage["name"]: stage["summary"] for stage in verdict["stages"]}["train"]
    assert proved.startswith("checkpoint at step 8,000")
    assert int(proved.rpartition(" ")[2].replace(",", "")) >= tormentor.struck[-1]
    assert "made no step for 20 s, and was killed" in output


class TestDeterministic:
    """`deterministic: true`."""

    def test_killed_at_random_steps_the_variables_are_bit_identical(self, tmp_path: Path) -> None:
        """Shuffled, over several epochs: a run that was killed twice ends in the very same numbers."""
        settings = {
            "training__deterministic": True, "training__max_steps": 120,
            "training__save_checkpoints_steps": 10, "training__log_every_steps": 1,
        }  # fmt: skip
        _, whole = arguments(tmp_path / "whole", **settings)
        _, killed = arguments(tmp_path / "killed", **settings)
        unkilled = train(whole)
        dice = random.Random(7)
        for least in (dice.randrange(20, 50), dice.randrange(60, 100)):
            with pytest.raises(ProcessDied, match="killed by SIGKILL"):
                train(killed, StopAt(lambda: child().kill(), least))
        resumed = train(killed)
        assert resumed.resumed_from >= 50
        assert resumed.global_step == 120
        assert _variables(resumed) == _variables(unkilled)

    def test_random_ops_with_a_state_are_told(self, tmp_path: Path) -> None:
        """Dropout draws from a state that no checkpoint holds: one line names the op, and what to use."""
        told: list[str] = []
        _, asked = arguments(
            tmp_path, training__deterministic=True, training__max_steps=1, model__params__dropout=0.5
        )
        train(asked, lambda progress: told.append(str(progress.get("message", ""))))
        assert any("random_uniform" in line and "tf.random.stateless_*" in line for line in told)


def _variables(checkpoint: Checkpoint) -> dict[str, bytes]:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(checkpoint.prefix))
    return {name: reader.get_tensor(name).tobytes() for name in reader.get_variable_to_shape_map()}


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "data truncated": (".data-00000-of-00001", _truncate),
    "data empty": (".data-00000-of-00001", lambda file: file.write_bytes(b"")),
    "data with a flipped bit": (".data-00000-of-00001", _flip_a_bit),
    "data missing": (".data-00000-of-00001", Path.unlink),
    "index truncated": (".index", _truncate),
    "index empty": (".index", lambda file: file.write_bytes(b"")),
    "index missing": (".index", Path.unlink),
}


class TestDamagedCheckpoints:
    """What a kill, a full disk or lost power leaves of the newest checkpoint."""

    @pytest.fixture
    def model_dir(self, tmp_path: Path) -> Path:
        """Checkpoints of steps 1, 200 and 300, of real training."""
        return Path(shutil.copytree(trained_digits().run.model_dir, tmp_path / "checkpoints"))

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_the_one_before_is_gone_on_from(self, model_dir: Path, damage: str) -> None:
        """The damaged one is set aside and told; TensorFlow's own record names the good one."""
        import tensorflow as tf

        from tasks.estimators import checkpoints

        suffix, harm = DAMAGES[damage]
        harm(model_dir / f"model.ckpt-300{suffix}")
        told: list[str] = []
        assert checkpoints.settle(model_dir, told.append) == 200
        assert told[0].startswith("checkpoint model.ckpt-300 is damaged (")
        assert told[0].endswith("): training goes on from step 200")
        assert tf.train.latest_checkpoint(str(model_dir)) == str(model_dir / "model.ckpt-200")
        assert checkpoints.set_aside(model_dir) == ["model.ckpt-300"]

    def test_a_lost_record_of_checkpoints_is_written_again(self, model_dir: Path) -> None:
        """TensorFlow would start over without a word: its `checkpoint` file was emptied by lost power."""
        import tensorflow as tf

        from tasks.estimators import checkpoints

        (model_dir / "checkpoint").write_bytes(b"")
        (model_dir / "model.ckpt-400_temp").mkdir()
        assert checkpoints.settle(model_dir, pytest.fail) == 300
        assert tf.train.latest_checkpoint(str(model_dir)) == str(model_dir / "model.ckpt-300")
        assert not list(model_dir.glob("*_temp"))

    def test_with_no_good_one_training_starts_over(self, model_dir: Path) -> None:
        """Each is told; then there is no checkpoint."""
        from tasks.estimators import checkpoints

        for file in model_dir.glob("*.data-*"):
            _truncate(file)
        told: list[str] = []
        assert checkpoints.settle(model_dir, told.append) is None
        assert len(told) == len(list((model_dir / "damaged").glob("*.index")))
        assert told[-1].endswith("training starts over")
        assert not (model_dir / "checkpoint").exists()

    def test_the_proof_of_training_names_it(self, tmp_path: Path, model_dir: Path) -> None:
        """The verdict's table says which checkpoint was set aside, and where training went on."""
        _, asked = arguments(tmp_path, training__max_steps=310)
        shutil.copytree(model_dir, asked["run"].model_dir)
        _truncate(asked["run"].model_dir / "model.ckpt-300.data-00000-of-00001")
        proved = train(asked).summary()
        assert "resumed from step 200" in proved
        assert proved.endswith("set aside as damaged: model.ckpt-300")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose folders are in tmp_path."""
    return run_of(written(tmp_path / "pipeline", {}), tmp_path)


class TestFinishedStages:
    """Artifacts kept for a resumed run."""

    def _candidate(self, run: Run) -> Candidate:
        path = run.model_base_path / f".candidate-{run.run_id}"
        for folder in (path, run.folder / "offline"):
            folder.mkdir(parents=True)
        (path / "saved_model.pb").write_bytes(b"graph")
        return Candidate(path, (), run.folder / "offline", 3)

    def test_they_come_back_as_they_were(self, run: Run) -> None:
        """NaN, paths and nested artifacts too; a run that is not resumed gets none."""
        evaluation = Evaluation({"loss": float("inf"), "accuracy": 0.5}, 3)
        candidate = self._candidate(run)
        before = FinishedStages(run, resumed=False)
        before.keep("evaluate", evaluation)
        before.keep("export", candidate)
        after = FinishedStages(run, resumed=True)
        assert after.recall("evaluate", Evaluation) == evaluation
        assert after.recall("export", Candidate) == candidate
        assert FinishedStages(run, resumed=False).recall("evaluate", Evaluation) is None

    def test_a_stage_whose_files_are_gone_is_run_again_and_all_after_it(self, run: Run) -> None:
        """Else what validated one candidate would be taken for the proof of another."""
        before = FinishedStages(run, resumed=False)
        before.keep("evaluate", Evaluation({}, 3))
        before.keep("export", self._candidate(run))
        before.keep("validate", Evaluation({}, 4))
        shutil.rmtree(run.model_base_path)
        after = FinishedStages(run, resumed=True)
        assert after.recall("evaluate", Evaluation) is not None
        assert after.recall("export", Candidate) is None
        assert after.recall("validate", Evaluation) is None
        assert [file.name for file in (run.folder / "stages").iterdir()] == ["evaluate.json"]

    def test_what_cannot_be_read_is_run_again(self, run: Run) -> None:
        """As a file of another release of Slipway."""
        FinishedStages(run, resumed=False).keep("evaluate", Evaluation({}, 3))
        assert FinishedStages(run, resumed=True).recall("evaluate", Candidate) is None


class TestWhichRun:
    """`--resume` with and without a run's id."""

    def _left(self, pipeline: Any, run_id: str, outcome: str | None) -> None:
        run = run_folders.describe(pipeline, run_id)
        with run_folders.opened(pipeline, run):
            if outcome is not None:
                (run.folder / "verdict.json").write_text(json.dumps({"outcome": outcome}))

    def test_the_newest_that_has_not_ended(self, tmp_path: Path) -> None:
        """A killed one has no verdict; rejected ones have ended."""
        pipeline = written(tmp_path, {})
        for run_id, outcome in (("r1", "deployed"), ("r2", "failed"), ("r3", None), ("r4", "rejected")):
            self._left(pipeline, run_id, outcome)
        assert resumable_runs.resumption(tmp_path, "newest").run.run_id == "r3"
        assert resumable_runs.resumption(tmp_path, "r2").run.run_id == "r2"

    @pytest.mark.parametrize("left", ["", '{"outco', "[]", "{}"])
    def test_one_whose_verdict_was_cut_short_can_go_on(self, tmp_path: Path, left: str) -> None:
        """As one without a verdict; the verdict before it is the last one."""
        pipeline = written(tmp_path, {})
        self._left(pipeline, "r1", "rejected")
        self._left(pipeline, "r2", "failed")
        run = run_folders.describe(pipeline, "r2")
        run_folders.verdict_file(run).write_text(left)
        assert resumable_runs.resumption(tmp_path, "newest").run.run_id == "r2"
        assert run_folders.last_verdict(run.pipeline) == {"outcome": "rejected"}

    def test_no_name_leads_out_of_the_runs(self, tmp_path: Path) -> None:
        """A run of another pipeline, or any other folder with a config.yaml, is no run of this one."""
        pipeline = written(tmp_path, {})
        self._left(pipeline, "r1", "failed")
        runs = run_folders.describe(pipeline, "r1").folder.parent
        (runs.parent / "other").mkdir()
        shutil.copytree(runs / "r1", runs.parent / "other" / "r1")
        for named in ("../other/r1", f"../{runs.name}/r1", str(runs.parent / "other" / "r1"), "..", ""):
            with pytest.raises(ConfigError, match="has no run"):
                resumable_runs.resumption(tmp_path, named)

    def test_it_keeps_its_own_configuration_and_tells_what_differs(self, tmp_path: Path) -> None:
        """What was edited since is for the next run: both sides are shown; --set is refused."""
        self._left(written(tmp_path, {}), "r1", "failed")
        written(tmp_path, {"training": {"max_steps": 9, "batch_size": 8}})
        found = resumable_runs.resumption(tmp_path, "newest")
        assert found.pipeline.config.training.max_steps == 2
        assert "training.max_steps 9 (the run: 2)" in found.told()
        with pytest.raises(
            ConfigError, match=r"keeps its own configuration, found --set training\.max_steps"
        ):
            resumable_runs.resumption(tmp_path, "newest", {"training.max_steps": 9})


SUBMIT = """
import json, sys
import flows.environment
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.deployments import run_deployment
from prefect.workers.process import ProcessWorker
from flows.retrain import retrain
repository, pool, parameters = sys.argv[1:]
template = ProcessWorker.get_default_base_job_template()
with get_client(sync_client=True) as client:
    client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
source = retrain.from_source(source=repository, entrypoint="flows/retrain.py:retrain")
deployment = source.deploy(name=pool, work_pool_name=pool, print_next_steps=False)
print("run", run_deployment(deployment, parameters=json.loads(parameters), timeout=0).id)
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["cancelled", "stopped"])
def test_what_a_worker_ends_leaves_a_checkpoint_and_no_process(slipway: Slipway, how: str) -> None:
    """A run that is cancelled, and SIGTERM to the process worker, which kills its flow: the trainer saves."""
    flow_run = _submitted(slipway, pool=how)
    worker = subprocess.Popen(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", how],
        env={**slipway.environment, "PREFECT_WORKER_QUERY_SECONDS": "1"}, cwd=REPOSITORY,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        eventually(lambda: _saved(slipway)[-1:] > [1], seconds=180)
        family = psutil.Process(worker.pid).children(recursive=True)
        if how == "cancelled":
            _cancel(slipway, flow_run)
        else:
            worker.terminate()
        _, alive = psutil.wait_procs(family, timeout=240)
        assert not alive, alive
        (log,) = slipway.home.glob("runs/digits/*/logs/train.log")
        *_, saving = re.findall(r"Saving checkpoints for (\d+) into", log.read_text())
        assert "Loss for final step" in log.read_text(), "the trainer was not let come to its end"
        assert _saved(slipway)[-1] == int(saving) >= 100
    finally:
        worker.kill()
        worker.wait(10)


def _submitted(slipway: Slipway, pool: str) -> str:
    """Hand training that takes for ever to a new work pool; return the id of the flow run."""
    overrides = {"training.max_steps": 10_000_000, "training.save_checkpoints_steps": 100}
    parameters = json.dumps({"pipeline": str(DIGITS), "overrides": overrides})
    program = [sys.executable, "-c", SUBMIT, str(REPOSITORY), pool, parameters]
    told = subprocess.run(
        program, env=slipway.environment, cwd=REPOSITORY, check=True, timeout=120, capture_output=True
    )
    return told.stdout.decode().split()[-1]


def _cancel(slipway: Slipway, flow_run: str) -> None:
    address = f"{slipway.environment['PREFECT_API_URL']}/flow_runs/{flow_run}/set_state"
    body = json.dumps({"state": {"type": "CANCELLING"}, "force": True}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status in (200, 201)
