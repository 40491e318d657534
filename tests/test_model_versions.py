"""Facts about `<model_base_path>/<int>/`."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.errors import EnvironmentFault, VersionExists
from tasks.state import model_versions, published_versions


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An empty model_base_path."""
    folder = tmp_path / "models" / "m"
    folder.mkdir(parents=True)
    return folder


def _candidate(base: Path, run_id: str = "r1") -> Path:
    folder = model_versions.candidate_folder(base, run_id)
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "variables.index").write_bytes(b"index")
    return folder


def test_a_candidate_is_not_a_version(base: Path) -> None:
    """What is exported and not published is invisible to servers."""
    _candidate(base)
    assert model_versions.versions(base) == {}


def test_publish_moves_the_whole_candidate(base: Path) -> None:
    """After publish the version holds every file, and the candidate is gone."""
    candidate = _candidate(base)
    folder = model_versions.publish(candidate, base, "timestamp", now=lambda: 1000.9)
    assert folder == base / "1000"
    assert (folder / "variables" / "variables.index").read_bytes() == b"index"
    assert not candidate.exists()


def test_sequential_numbers_have_four_digits(base: Path) -> None:
    """Sequential versions are named 0001, 0002 …, as in TensorFlow's guide."""
    names = [model_versions.publish(_candidate(base), base, "sequential").name for _ in range(2)]
    assert names == ["0001", "0002"]
    assert list(model_versions.versions(base)) == [1, 2]


@settings(max_examples=30, deadline=None)
@given(clock=st.lists(st.integers(0, 10_000), min_size=2, max_size=6))
def test_numbers_only_rise_whatever_the_clock_says(
    tmp_path_factory: pytest.TempPathFactory, clock: list[int]
) -> None:
    """A clock that goes back, or stands, never yields a number that is not higher than the last."""
    base = tmp_path_factory.mktemp("base")
    numbers = []
    for tick in clock:
        folder = model_versions.publish(_candidate(base), base, "timestamp", now=lambda tick=tick: tick)
        numbers.append(int(folder.name))
    assert numbers == sorted(set(numbers))


def test_a_removed_or_withdrawn_number_is_never_used_again(base: Path) -> None:
    """The number of a version that is gone does not come back with other content."""
    first = model_versions.publish(_candidate(base), base, "sequential")
    second = model_versions.publish(_candidate(base), base, "sequential")
    model_versions.withdraw(base, 2)
    for folder in (first, base / "2.withdrawn"):
        subprocess.run(["rm", "-r", folder], check=True)
    assert not second.exists()
    assert model_versions.publish(_candidate(base), base, "sequential").name == "0003"


def test_withdraw_hides_the_version_and_keeps_it(base: Path) -> None:
    """A withdrawn version has a name that servers ignore, and all its files."""
    folder = model_versions.publish(_candidate(base), base, "timestamp", now=lambda: 7)
    hidden = model_versions.withdraw(base, 7)
    assert hidden == base / "7.withdrawn" and (hidden / "saved_model.pb").is_file()
    assert not folder.exists() and model_versions.versions(base) == {}
    assert model_versions.withdraw(base, 7) is None


def test_prune_keeps_the_newest_and_the_protected(base: Path) -> None:
    """The live version stays even where newer ones fill the quota."""
    for _ in range(5):
        model_versions.publish(_candidate(base), base, "sequential")
    assert model_versions.prune(base, keep=2, protected={1}) == (2, 3)
    assert list(model_versions.versions(base)) == [1, 4, 5]


def test_prune_removes_what_dead_runs_left(base: Path) -> None:
    """Candidates and withdrawn versions older than all that is kept go too."""
    model_versions.publish(_candidate(base), base, "sequential")
    model_versions.withdraw(base, 1)
    for _ in range(2):
        model_versions.publish(_candidate(base), base, "sequential")
    left = _candidate(base, "dead")
    model_versions.prune(base, keep=2, protected=set())
    assert not left.exists() and not (base / "1.withdrawn").exists()


def test_files_are_readable_by_a_server_of_another_user(base: Path) -> None:
    """Whatever the umask of the trainer, a non-root container can read the version."""
    candidate = _candidate(base)
    for path in (candidate, *candidate.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    folder = model_versions.publish(candidate, base, "timestamp")
    assert all(path.stat().st_mode & stat.S_IROTH for path in (folder, *folder.rglob("*")))
    assert all(path.stat().st_mode & stat.S_IXOTH for path in (folder, folder / "variables"))


def test_racing_publishers_get_different_numbers(base: Path) -> None:
    """Eight publishers at the same second publish eight versions."""
    candidates = [_candidate(base, f"r{index}") for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        folders = pool.map(
            lambda candidate: model_versions.publish(candidate, base, "timestamp", now=lambda: 5), candidates
        )
        assert sorted(int(folder.name) for folder in folders) == list(range(5, 13))


def test_a_taken_folder_is_never_replaced(base: Path) -> None:
    """A file that stands where the version would go is an error, and stays."""
    (base / "0001").write_text("mine")
    candidate = _candidate(base)
    with pytest.raises(VersionExists, match="0001 is there already"):
        model_versions.publish(candidate, base, "sequential")
    assert (base / "0001").read_text() == "mine" and candidate.is_dir()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a POSIX file system")
def test_a_base_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """A base path that cannot be a folder is named, with what to do."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(EnvironmentFault, match=r"model_base_path .*file/m is not writable") as caught:
        model_versions.require_writable(blocked / "m")
    assert "export.model_base_path" in caught.value.hint


def test_a_base_path_that_we_make_can_be_read_by_a_server_of_another_user(tmp_path: Path) -> None:
    """Whatever the umask."""
    before = os.umask(0o077)
    try:
        model_versions.require_writable(tmp_path / "models" / "m")
    finally:
        os.umask(before)
    assert (tmp_path / "models" / "m").stat().st_mode & 0o777 == 0o755


def test_a_killed_holder_frees_the_lock(base: Path) -> None:
    """A publisher that was killed with the lock held does not stop the next one."""
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, filelock, time\n"
         "filelock.FileLock(sys.argv[1]).acquire(); print('held', flush=True); time.sleep(60)",
         str(base / ".lock")], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert model_versions.publish(_candidate(base), base, "sequential").name == "0001"


class TestPublished:
    """The list of versions that runs published."""

    def test_versions_from_before_the_first_run_are_listed(self, base: Path) -> None:
        """They were served before; what comes later by hand is not listed."""
        (base / "3").mkdir(parents=True)
        (base / "3" / "saved_model.pb").write_bytes(b"by hand")
        folder = model_versions.publish(_candidate(base), base, "sequential", published_only=True)
        shutil.copytree(folder, base / "9")
        assert list(model_versions.published(base)) == [3, 4]
        assert (base / ".published").stat().st_mode & 0o777 == 0o644

    def test_a_lost_list_is_rebuilt_without_higher_numbers(self, base: Path) -> None:
        """Numbers only rise by publishing: a copy above the highest one is somebody's own."""
        folder = model_versions.publish(_candidate(base), base, "sequential", published_only=True)
        shutil.copytree(folder, base / "9")
        (base / ".published").write_bytes(b"")
        model_versions.list_published(base)
        assert list(model_versions.published(base)) == [1]

    def test_withdrawn_and_removed_versions_leave_it(self, base: Path) -> None:
        """So that nobody puts them back under their numbers."""
        for _ in range(4):
            model_versions.publish(_candidate(base), base, "sequential", published_only=True)
        model_versions.withdraw(base, 4)
        model_versions.prune(base, 2, set())
        assert sorted(published_versions.listed(base) or ()) == [2, 3]

    def test_without_the_setting_there_is_no_list(self, base: Path) -> None:
        """Versions that are put there by hand are versions then."""
        model_versions.publish(_candidate(base), base, "sequential", published_only=True)
        folder = model_versions.publish(_candidate(base), base, "sequential")
        shutil.copytree(folder, base / "9")
        assert list(model_versions.published(base)) == [1, 2, 9]
