"""The routing table: what a ModelSpec means, and what is said where it means nothing."""

from __future__ import annotations

import pytest
from model_server_requests import spec

from model_server.base.status import StatusError
from model_server.models.routing import Route, RoutingTable

TABLE = RoutingTable(
    3,
    {
        "a": Route(frozenset({2, 10}), {"stable": 2, "canary": 10, "next": 11}),
        "b": Route(frozenset({-1})),
        "loading": Route(),
    },
)


@pytest.mark.parametrize(
    ("asked", "number"),
    [
        (spec("a"), 10),
        (spec("a", version=2), 2),
        (spec("a", label="stable"), 2),
        (spec("a", label="canary"), 10),
        (spec("b"), -1),
    ],
)
def test_a_spec_means_one_version(asked: object, number: int) -> None:
    """By number, by label, or the highest number."""
    assert TABLE.resolve(asked) == number


@pytest.mark.parametrize(
    ("asked", "code", "text"),
    [
        (spec(""), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (spec("x"), "NOT_FOUND", "Servable not found for request: Latest(x)\nModels in service: a, b"),
        (spec("loading"), "NOT_FOUND",
         "Servable not found for request: Latest(loading)\nModels in service: a, b"),
        (spec("x", version=1), "NOT_FOUND",
         "Servable not found for request: Specific(x, 1)\nModels in service: a, b"),
        (spec("a", version=0), "NOT_FOUND",
         "Servable not found for request: Specific(a, 0)\nVersions of a in service: 10, 2"),
        (spec("loading", version=1), "NOT_FOUND",
         "Servable not found for request: Specific(loading, 1)\nVersions of loading in service: none"),
        (spec("a", label="next"), "NOT_FOUND",
         "Servable not found for request: Specific(a, 11)\nVersions of a in service: 10, 2"),
        (spec("a", label="old"), "INVALID_ARGUMENT",
         "Unrecognized servable version label: old\nLabels of a: canary, next, stable"),
        (spec("a", label=""), "INVALID_ARGUMENT",
         "Unrecognized servable version label: \nLabels of a: canary, next, stable"),
        (spec("x", label="old"), "INVALID_ARGUMENT",
         "Unrecognized servable version label: old\nLabels of x: none"),
    ],
)  # fmt: skip
def test_errors_say_the_official_text_then_what_there_is(asked: object, code: str, text: str) -> None:
    """The first line is the official server's message, word for word."""
    with pytest.raises(StatusError) as raised:
        TABLE.resolve(asked)
    assert (raised.value.code.name, raised.value.message) == (code, text)


def test_long_lists_are_cut() -> None:
    """An error is no catalogue."""
    table = RoutingTable(1, {f"m{number:02}": Route(frozenset({1})) for number in range(12)})
    with pytest.raises(StatusError, match=r"m00, .*, m09 and 2 more$"):
        table.resolve(spec("x"))
