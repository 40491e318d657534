"""Log lines of TensorFlow and of servers: what is forwarded to the run's log, and at which level."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tasks import log_lines


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

    def test_a_log_that_is_not_there_is_no_error(self, tmp_path: Path) -> None:
        """A child that died at once has written none."""
        log_lines.Forwarded(tmp_path / "none.log", lambda level, line: None).close()
