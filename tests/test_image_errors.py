"""What is said of an image that cannot be had."""

from __future__ import annotations

from typing import Any, cast

import pytest
from docker.errors import APIError, ImageNotFound

from configs.schema.serving import DeploymentConfig, ServerConfig
from tasks import preflight
from tasks.core.errors import ImageUnavailable
from tasks.servers import server_image

RESOLVER = (
    'failed to resolve reference "registry.example/library/python:3.11": failed to do request: Head '
    '"https://registry.example/v2/library/python/manifests/3.11":\ndial tcp: lookup registry.example '
    "on 10.0.0.2:53:\nno such host"
)


class _Engine:
    """An engine without an image, whose pulls fail with this explanation."""

    def __init__(self, explanation: str) -> None:
        self._explanation = explanation
        self.images = self

    def get(self, name: str) -> None:
        raise ImageNotFound(name)

    def pull(self, *_: str) -> None:
        raise APIError("500 Server Error", explanation=self._explanation)


@pytest.mark.parametrize(
    ("explanation", "reason"),
    [
        (RESOLVER, "no image registry can be reached"),
        ("net/http: request canceled (Client.Timeout exceeded)\nretrying: i/o timeout", "no image registry"),
        (
            "manifest unknown: manifest tagged by 9.9 is not found",
            "pulling it failed: manifest tagged by 9.9",
        ),
    ],
    ids=["resolver", "timeout", "no such tag"],
)
def test_the_reason_is_one_line_in_words(explanation: str, reason: str) -> None:
    """No chain of addresses; the hint is what to type."""
    with pytest.raises(ImageUnavailable) as caught:
        server_image.ensure(cast(Any, _Engine(explanation)), None, lambda line: None)
    assert caught.value.message.startswith(f"there is no image {server_image.PUBLIC_BASE}, and {reason}")
    assert "\n" not in caught.value.message and len(caught.value.message) < 110
    assert "make base-image" in caught.value.hint


@pytest.mark.parametrize(
    ("image", "pulled"),
    [
        ("registry.example:5000/models/server:2.15", ("registry.example:5000/models/server", "2.15")),
        ("registry.example:5000/models/server", ("registry.example:5000/models/server", "latest")),
        ("tensorflow/serving:2.15.1", ("tensorflow/serving", "2.15.1")),
        ("tensorflow/serving@sha256:0123", ("tensorflow/serving", "sha256:0123")),
    ],
)
def test_an_image_is_pulled_by_its_repository_and_tag(image: str, pulled: tuple[str, str]) -> None:
    """A registry's port is no tag, and a digest is one."""
    asked: list[tuple[str, ...]] = []

    class Engine(_Engine):
        def pull(self, *name: str) -> None:
            asked.append(name)

    server_image._find_or_pull(cast(Any, Engine("")), image, "")
    assert asked == [pulled]


def test_by_default_a_process_serves_and_its_line_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stage table shows of preflight is one line."""
    monkeypatch.setattr(server_image, "engine", lambda: _Engine(RESOLVER))
    kind, _, reason = preflight._choose(DeploymentConfig(), ServerConfig(), None)
    assert kind == "process"
    assert reason == (
        f"served by a local process: there is no image {server_image.PUBLIC_BASE}, and no image registry can "
        "be reached (`make base-image` makes one from Debian packages)"
    )
