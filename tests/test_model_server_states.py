"""Which versions may be unloaded, and when a failed one is tried again."""

from __future__ import annotations

import pytest

from model_server.base.status import Code, StatusError
from model_server.models.version_states import LoadPolicy, State, Version, to_unload

ERROR = StatusError(Code.DATA_LOSS, "broken")


@pytest.mark.parametrize(
    ("available", "wanted", "unloaded"),
    [
        ((1,), {1}, ()),
        ((1,), {2}, ()),
        ((1, 2), {2}, (1,)),
        ((1, 2, 3), {4}, (1, 2)),
        ((3, 1, 2), {2}, (1, 3)),
        ((3,), {2}, ()),
        ((1, 2), set(), (1, 2)),
        ((1, 2, 3), {2, 3, 4}, (1,)),
    ],
)
def test_what_is_in_service_goes_when_something_wanted_is(
    available: tuple[int, ...], wanted: set[int], unloaded: tuple[int, ...]
) -> None:
    """Or nothing is wanted; of several unwanted ones the highest stays until then."""
    versions = [Version(number, State.AVAILABLE) for number in available]
    versions.append(Version(4, State.LOADING))
    assert tuple(version.number for version in to_unload(versions, wanted)) == unloaded


def test_tries_go_on_after_the_end_at_growing_intervals() -> None:
    """The flags' interval while it is LOADING, then twice as long each time, and an hour at most."""
    policy = LoadPolicy(poll_seconds=1, max_retries=2, retry_interval_seconds=60)
    version = Version(1)
    states, waits = [], []
    for _ in range(12):
        version.fail(ERROR, policy, 1000.0)
        states.append(version.state)
        waits.append(version.retry_at - 1000.0)
    assert states == [State.LOADING] * 2 + [State.END] * 10
    assert waits == [60, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600, 3600, 3600]
    assert version.has_failed_for_good()


def test_an_interval_of_zero_does_not_become_a_busy_loop() -> None:
    """After the tries that the flags allow, at least a second passes."""
    version = Version(1)
    version.fail(ERROR, LoadPolicy(poll_seconds=1, max_retries=0, retry_interval_seconds=0), 0.0)
    assert version.retry_at == 2.0


def test_a_longer_interval_than_an_hour_is_kept() -> None:
    """Nobody who asks for a day gets an hour."""
    version = Version(1)
    version.fail(ERROR, LoadPolicy(poll_seconds=1, max_retries=0, retry_interval_seconds=86400), 0.0)
    assert version.retry_at == 86400.0
