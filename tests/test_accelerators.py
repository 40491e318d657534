"""Which devices a training gets: GPUs by number, memory, logical CPUs, and the slot that keeps two apart."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from pipelines import written

from configs.loading.errors import ConfigError
from configs.schema.accelerators import AcceleratorConfig
from configs.schema.pipeline import TrainingConfig
from tasks.core.errors import EnvironmentFault
from tasks.estimators import accelerators, gpu_slots


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A TensorFlow that lists two GPUs; what is asked of them is noted, as there are none to ask."""
    noted: list[tuple[Any, ...]] = []
    gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{number}", "GPU") for number in (0, 1)]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus if kind == "GPU" else [])

    def note(what: str) -> Any:
        return lambda device, value: noted.append((what, device, value))

    def name(device: Any) -> dict[str, str]:
        return {"device_name": f"Tesla {device.name[-1]}"}

    monkeypatch.setattr(tf.config, "set_visible_devices", note("visible"))
    monkeypatch.setattr(tf.config, "set_logical_device_configuration", note("logical"))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", note("growth"))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", name)
    return noted


@pytest.mark.parametrize(
    ("gpus", "numbers"), [("all", "0,1"), (1, "0"), (2, "0,1"), ([1], "1"), ([1, 0], "1,0")]
)
def test_gpus_are_chosen_by_all_count_or_number(
    two_gpus: list[tuple[Any, ...]], gpus: Any, numbers: str
) -> None:
    """Sessions and the eager context see the same ones."""
    config = accelerators.claim(AcceleratorConfig(device="gpu", gpus=gpus))
    assert config.gpu_options.visible_device_list == numbers
    assert config.gpu_options.allow_growth
    ((_, seen, _),) = [entry for entry in two_gpus if entry[0] == "visible"]
    assert ",".join(gpu.name[-1] for gpu in seen) == numbers
    assert [value for what, _, value in two_gpus if what == "growth"] == [True] * len(seen)


def test_memory_is_limited_for_sessions_and_the_eager_context(two_gpus: list[tuple[Any, ...]]) -> None:
    """memory_limit_mb reaches both, for each GPU; growth is what the session says."""
    config = accelerators.claim(AcceleratorConfig(device="auto", memory_limit_mb=512, memory_growth=False))
    limits = [list(split.memory_limit_mb) for split in config.gpu_options.experimental.virtual_devices]
    assert limits == [[512], [512]]
    assert not config.gpu_options.allow_growth
    assert [value[0].memory_limit for what, _, value in two_gpus if what == "logical"] == [512, 512]


@pytest.mark.parametrize("gpus", [3, [2], [0, 5]])
@pytest.mark.usefixtures("two_gpus")
def test_gpus_that_are_not_there(gpus: Any) -> None:
    """The error lists those that are."""
    with pytest.raises(EnvironmentFault, match=r"gpus asks for GPU .*finds 0 \(Tesla 0\), 1 \(Tesla 1\)"):
        accelerators.claim(AcceleratorConfig(device="auto", gpus=gpus))


@pytest.mark.usefixtures("two_gpus")
def test_the_cpu_is_chosen_though_there_are_gpus() -> None:
    """`cpu` leaves a session none."""
    config = accelerators.claim("cpu")
    assert (config.gpu_options.visible_device_list, config.device_count["GPU"]) == ("", 0)


CUT = """
import tensorflow as tf
from configs.schema.accelerators import AcceleratorConfig
from tasks.estimators import accelerators
config = accelerators.claim(AcceleratorConfig(device="cpu", cpus=3))
with tf.compat.v1.Session(config=config, graph=tf.Graph()) as session:
    print(len([d for d in session.list_devices() if d.device_type == "CPU"]))
print(len(tf.config.list_logical_devices("CPU")))
"""


def test_the_cpu_is_cut_into_logical_devices() -> None:
    """As many for a session as for the eager context."""
    said = subprocess.run([sys.executable, "-c", CUT], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["3", "3"]


@pytest.mark.parametrize(
    ("accelerator", "problem"),
    [
        ({"device": "tpu"}, "training.accelerator.device' = 'tpu': input should be 'auto', 'cpu' or 'gpu'"),
        ({"gpu": 1}, "is not a known key: did you mean 'gpus'?"),
        ({"gpus": 0}, "training.accelerator.gpus"),
        ({"gpus": []}, "list at least one GPU"),
        ({"gpus": [1, 1]}, "and each once"),
        ({"gpus": [-1]}, "training.accelerator.gpus"),
        ({"device": "cpu", "gpus": 1}, "need device gpu or auto, not cpu"),
        ({"device": "cpu", "memory_limit_mb": 10}, "need device gpu or auto, not cpu"),
        ({"memory_limit_mb": 0}, "training.accelerator.memory_limit_mb' = 0"),
        ("tpu", "training.accelerator' = 'tpu': input should be 'auto', 'cpu' or 'gpu'"),
    ],
)
def test_what_the_yaml_may_not_say(tmp_path: Path, accelerator: Any, problem: str) -> None:
    """Each mistake is told at its key."""
    with pytest.raises(ConfigError) as caught:
        written(tmp_path, {"training": {"accelerator": accelerator}})
    assert problem in caught.value.message


def test_the_short_form_is_the_long_one() -> None:
    """A word is a mapping with that device; both survive the way into a child."""
    assert AcceleratorConfig.of("gpu") == AcceleratorConfig(device="gpu")
    long = TrainingConfig(accelerator=AcceleratorConfig(device="gpu", gpus=(1,), memory_limit_mb=9))
    assert TrainingConfig.model_validate(long.model_dump(mode="json")) == long


def test_only_what_may_use_a_gpu_takes_a_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cpu` never does, `gpu` always, `auto` where there is an NVIDIA driver."""
    monkeypatch.setattr(gpu_slots, "_DRIVER", tmp_path / "gpus")
    assert not gpu_slots.may_use_gpu(AcceleratorConfig(device="cpu"))
    assert gpu_slots.may_use_gpu(AcceleratorConfig(device="gpu"))
    assert not gpu_slots.may_use_gpu(AcceleratorConfig())
    (tmp_path / "gpus").mkdir()
    assert gpu_slots.may_use_gpu(AcceleratorConfig())


def test_a_second_training_waits_for_the_gpu(prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is made with one slot; who comes second gets in when the first has left."""
    from prefect.client.orchestration import get_client
    from prefect.concurrency.sync import concurrency
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr(gpu_slots, "report", lambda _: None)
    accelerator = AcceleratorConfig(device="gpu", concurrency_limit="slipway-gpu.test")
    entered = threading.Event()

    def second() -> None:
        with temporary_settings({PREFECT_API_URL: prefect_api}), gpu_slots.held(accelerator):
            entered.set()

    waiting = threading.Thread(target=second)
    with temporary_settings({PREFECT_API_URL: prefect_api}), get_client(sync_client=True) as client:
        with gpu_slots.held(accelerator):
            limit = client.read_global_concurrency_limit_by_name("slipway-gpu.test")
            assert (limit.limit, limit.active_slots) == (1, 1)
            with pytest.raises(TimeoutError), concurrency("slipway-gpu.test", timeout_seconds=1, strict=True):
                pytest.fail("two on one GPU")
            waiting.start()
            assert not entered.is_set()
        assert entered.wait(60)
        waiting.join(60)
        assert client.read_global_concurrency_limit_by_name("slipway-gpu.test").active_slots == 0
