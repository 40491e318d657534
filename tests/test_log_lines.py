"""Log lines of TensorFlow and of servers: what is forwarded to the run's log, and at which level."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.core import log_lines
from tasks.deploys import server_lines
from tasks.state import server_records
from tasks.state.server_records import ServerRecord

SERVER = ServerRecord("small", "process", "model_server", "id", "/models", (), 1, 2, handle="7:1.0")


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("WARNING:tensorflow:It seems that global step has not been increased.", logging.WARNING),
        ("ERROR:tensorflow:Model diverged with loss = NaN.", logging.ERROR),
        ("CRITICAL:root:no", logging.CRITICAL),
        ("2026-11-22 03:00:00.123456: W tensorflow_serving/util/x.cc:1] slow", logging.WARNING),
        ("2026-11-22 03:00:00.123456: E tensorflow/core/x.cc:1] broken", logging.ERROR),
        ("2026-11-22 03:00:00.123456: F tensorflow/core/x.cc:1] dead", logging.CRITICAL),
        ("E1122 03:00:00.123456    7 file.cc:12] no socket", logging.ERROR),
        ("model.py:12: UserWarning: NaN in the batch", logging.WARNING),
        ("2026-11-22T13:31:26.699 WARNING model digits version 3: cannot be loaded", logging.WARNING),
        (json.dumps({"level": "error", "message": "no"}), logging.ERROR),
        (json.dumps({"severity": "ERROR", "message": "as our server says it"}), logging.ERROR),
    ],
)
def test_warnings_and_errors_are_seen_at_their_level(line: str, level: int) -> None:
    """In every format that what we run prints them in."""
    assert log_lines.level(line) == level


@pytest.mark.parametrize(
    "line",
    [
        "INFO:tensorflow:loss = 0.03, step = 400",
        "2026-11-22 03:00:00.123456: I tensorflow/core/x.cc:1] fine",
        "2026-11-22T13:31:26.699 INFO listening",
        "2026-11-22 03:00:00.1: E external/x/cuda_dnn.cc:9261] Unable to register cuDNN factory",
        "2026-11-22 03:00:00.1: W tensorflow/compiler/tf2tensorrt/x.cc:38] TF-TRT Warning: no TensorRT",
        "WARNING:tensorflow:From x.py:1: f (from tensorflow) is deprecated and will be removed",
        "x.py:12: DeprecationWarning: use g",
        "dataset_ops.py:462: UserWarning: To make it possible to preserve tf.data options across "
        "serialization boundaries, their implementation has moved to be part of the TensorFlow graph.",
        "Traceback (most recent call last):",
        "a print of a user: ERROR is my favourite word",
        "{not json",
        "{}",
        "",
    ],
)
def test_information_and_noise_are_not(line: str) -> None:
    """Nothing of CUDA on a machine without, no deprecation storm, nothing that is only said."""
    assert log_lines.level(line) is None


class TestOfAServer:
    """What the model's server prints between a stage's beginning and its end."""

    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        """Of a server that is noted, and has been at work for a while."""
        log = tmp_path / "small.log"
        log.write_text("2026-11-22T03:00:00.000 ERROR of the night before\n")
        server_records.write(replace(SERVER, log=str(log)))
        return log

    @pytest.fixture(autouse=True)
    def _all_levels(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "tasks.runs.stages")

    def test_it_is_told_at_its_level(self, log: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Loading, warmup and errors; what it printed before is not, nor is noise."""
        with server_lines.told("small"), log.open("a") as printed:
            printed.write("2026-11-22T03:00:01.000 INFO model small version 3: loading from /models/3\n")
            printed.write("2026-11-22 03:00:01.1: I tensorflow/compiler/xla/cuda.cc:1] no GPU\n")
            printed.write("2026-11-22T03:00:02.000 ERROR POST /v1/models/small:predict failed\n")
        assert [(each.levelno, each.message.split(" ", 2)[2]) for each in caplog.records] == [
            (logging.INFO, "model small version 3: loading from /models/3"),
            (logging.ERROR, "POST /v1/models/small:predict failed"),
        ]

    def test_it_is_told_when_the_stage_fails(self, log: Path, caplog: pytest.LogCaptureFixture) -> None:
        """That is when somebody looks."""
        with suppress(ZeroDivisionError), server_lines.told("small"), log.open("a") as printed:
            printed.write("2026-11-22T03:00:01.000 WARNING slow disk\n")
            raise ZeroDivisionError
        assert [each.message for each in caplog.records] == ["2026-11-22T03:00:01.000 WARNING slow disk"]

    def test_of_another_server_all_is_told(
        self, log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It was started inside the block, in the place of the one before."""
        with server_lines.told("small"):
            other = tmp_path / "other.log"
            other.write_text("2026-11-22T03:00:01.000 INFO listening\n")
            server_records.write(replace(SERVER, handle="8:1.0", log=str(other)))
        assert [each.message for each in caplog.records] == ["2026-11-22T03:00:01.000 INFO listening"]

    def test_where_it_says_much_warnings_and_errors_are_told(self) -> None:
        """And how many lines were not."""
        lines = [f"2026-11-22T03:00:00.000 INFO line {number}" for number in range(50)]
        taken: list[tuple[int, str]] = []
        log_lines.seen(
            "\n".join([*lines, "2026-11-22T03:00:01.000 ERROR no"]), lambda *each: taken.append(each)
        )
        assert taken == [
            (logging.ERROR, "2026-11-22T03:00:01.000 ERROR no"),
            (logging.INFO, "50 more lines were printed"),
        ]


class TestForwarded:
    """A log that grows."""

    @pytest.fixture
    def taken(self) -> list[tuple[int, str]]:
        return []

    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        file = tmp_path / "train.log"
        file.write_text("ERROR:tensorflow:of the try before\n")
        return file

    def test_what_is_new_is_handed_on_when_its_line_is_whole(
        self, log: Path, taken: list[tuple[int, str]]
    ) -> None:
        """What was there before is not; half a line waits for its other half."""
        forwarded = log_lines.Forwarded(log, lambda level, line: taken.append((level, line)))
        forwarded.look()
        with log.open("a") as file:
            file.write("INFO:tensorflow:fine\nWARNING:tensorflow:od")
            file.flush()
            forwarded.look()
            assert taken == []
            file.write("d\n")
        forwarded.look()
        forwarded.close()
        assert taken == [(logging.WARNING, "WARNING:tensorflow:odd")]

    def test_a_storm_is_bounded(self, log: Path, taken: list[tuple[int, str]]) -> None:
        """The same warning with other numbers is told once; of many others the first, and how many more."""
        forwarded = log_lines.Forwarded(log, lambda level, line: taken.append((level, line)))
        with log.open("a") as file:
            file.writelines(f"WARNING:tensorflow:slow step {step}\n" for step in range(1000))
            file.writelines(f"WARNING:tensorflow:odd {'x' * size}\n" for size in range(50))
        forwarded.close()
        assert len(taken) == log_lines.MOST_FORWARDED + 1
        assert taken[0][1] == "WARNING:tensorflow:slow step 0"
        assert taken[-1][1] == f"31 more such lines are in {log}"

    @pytest.mark.parametrize("secret", ["hunter2-hunter2", "hunter2\nhunter2"])
    def test_a_secret_is_masked_before_a_line_is_cut(
        self, log: Path, taken: list[tuple[int, str]], secret: str
    ) -> None:
        """One across the cut would be told in part; so would one with a line break in it."""
        forwarded = log_lines.Forwarded(
            log, lambda level, line: taken.append((level, line)), lambda text: text.replace(secret, "***")
        )
        start = "ERROR:tensorflow:".ljust(495, "x")
        with log.open("a") as file:
            file.write(f"{start}{secret}{secret}\n")
        forwarded.close()
        assert taken == [(logging.ERROR, f"{start}*****…")]

    def test_a_log_that_is_not_there_is_no_error(self, tmp_path: Path) -> None:
        """A child that died at once has written none."""
        log_lines.Forwarded(tmp_path / "none.log", lambda level, line: None).close()
