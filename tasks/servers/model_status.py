"""What a running server says of its versions, over REST: no TensorFlow needed (GetModelStatus has it).

`GET /v1/models/NAME` answers `{"model_version_status": [{"version": "7", "state": "AVAILABLE",
"status": {"error_code": "OK", "error_message": ""}}]}` (tf_serving.md, 1.10).
"""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass

import httpx

_NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For HTTP without TLS: to read those that httpx trusts took 18 ms of CPU each time, and waits ask often."""


@dataclass(frozen=True)
class VersionStatus:
    """State of one version: START, LOADING, AVAILABLE, UNLOADING or END, and its error if it has one."""

    version: int
    state: str
    error: str


def version_statuses(rest: str, model_name: str, timeout_seconds: float = 2.0) -> tuple[VersionStatus, ...]:
    """Return the state of each version that the server knows, or () where it does not answer (yet)."""
    try:
        response = _get(f"{rest}/v1/models/{model_name}", timeout_seconds)
        return parsed(response.raise_for_status().text)
    except httpx.HTTPError:
        return ()


def parsed(text: str) -> tuple[VersionStatus, ...]:
    """Return the states that a server's answer tells of, () where it is none."""
    try:
        return tuple(_parsed(entry) for entry in json.loads(text)["model_version_status"])
    except (KeyError, ValueError):
        return ()


def _get(url: str, timeout_seconds: float) -> httpx.Response:
    return httpx.get(url, timeout=timeout_seconds, trust_env=False, verify=_NO_AUTHORITIES)


def numerics(rest: str, timeout_seconds: float = 2.0) -> dict[str, str]:
    """Return what the server reports of how it rounds (`GET /numerics`), and whether it `merges` requests.

    Empty for a server that reports nothing, such as the official one.
    """
    try:
        reported = _get(f"{rest}/numerics", timeout_seconds).raise_for_status().json()
        return {str(name): str(value) for name, value in reported.items()}
    except (httpx.HTTPError, ValueError, AttributeError):
        return {}


def answers(rest: str, timeout_seconds: float = 2.0) -> bool:
    """Return whether a server answers, whatever models it has."""
    try:
        _get(f"{rest}/v1/models", timeout_seconds)
    except httpx.HTTPError:
        return False
    return True


def is_silent(rest: str, timeout_seconds: float) -> bool:
    """Return whether a server accepts connections and does not answer, as one that hangs does."""
    try:
        _get(f"{rest}/v1/models", timeout_seconds)
    except (httpx.ReadTimeout, httpx.WriteTimeout):
        return True
    except httpx.HTTPError:
        return False
    return False


def _parsed(entry: dict[str, dict[str, str]]) -> VersionStatus:
    status = entry["status"]
    failed = status.get("error_code", "OK") != "OK"
    error = f"{status['error_code']}: {status.get('error_message', '')}" if failed else ""
    return VersionStatus(int(str(entry["version"])), str(entry["state"]), error)


def live_version(rest: str, model_name: str) -> int | None:
    """Return the version that a request without a version is answered by; None where nothing answers."""
    available = [
        status.version for status in version_statuses(rest, model_name) if status.state == "AVAILABLE"
    ]
    return max(available, default=None)
