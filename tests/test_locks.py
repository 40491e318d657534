"""The lock files: the checkout's, and those of the two images, which may not drift from it."""

from __future__ import annotations

import re

import pytest
from slipway_command import REPOSITORY

CHECKOUT = "requirements.lock"
LAYERS = ("requirements-dev.lock", "requirements-parquet.lock", "requirements-uv.lock")
"""Installed beside or before the checkout's."""

IMAGES = ("containers/pipeline/requirements.lock", "containers/model_server/requirements.lock")
ONLY_IN_IMAGES = {"tensorflow-cpu"}
"""In tensorflow's place, of the same version."""


def _pins(lock: str) -> dict[str, set[str]]:
    """Package to its versions, of which there may be one for each Python."""
    pins: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9.-]+)==(\S+)", (REPOSITORY / lock).read_text(), re.MULTILINE):
        pins.setdefault(name, set()).add(version)
    return pins


@pytest.mark.parametrize("lock", [CHECKOUT, *LAYERS, *IMAGES])
def test_every_pin_has_hashes_and_no_index_is_named(lock: str) -> None:
    """What is installed is what was locked, from wherever it comes."""
    text = (REPOSITORY / lock).read_text()
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(entries) == sum(len(versions) for versions in _pins(lock).values())
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text


@pytest.mark.parametrize("lock", IMAGES)
def test_an_image_has_the_versions_of_the_checkout(lock: str) -> None:
    """What is tested is what runs at night; tensorflow-cpu stands in for tensorflow."""
    checkout, image = _pins(CHECKOUT), _pins(lock)
    assert set(image) - set(checkout) == ONLY_IN_IMAGES
    assert image["tensorflow-cpu"] == checkout["tensorflow"]
    assert {name: found for name, found in image.items() if not found <= checkout.get(name, found)} == {}


@pytest.mark.parametrize("lock", LAYERS)
def test_a_package_has_one_version_in_all_that_is_installed(lock: str) -> None:
    """For each Python: a layer adds packages, and changes none."""
    checkout = _pins(CHECKOUT)
    assert {
        name: found for name, found in _pins(lock).items() if not found <= checkout.get(name, found)
    } == {}


def test_the_product_is_installed_without_development_packages() -> None:
    """`make demo` downloads what it runs."""
    assert {"pytest", "mypy", "ruff", "hypothesis", "playwright", "pip-audit"} <= set(_pins(LAYERS[0]))
    assert {"pytest", "mypy", "ruff", "hypothesis", "playwright", "pip-audit"} & set(_pins(CHECKOUT)) == set()


def test_prefect_is_locked_with_what_it_runs_with() -> None:
    """Prefect 3.8.8 asks for less: with newer ones it starts no server, or plans no night."""
    pins = _pins(CHECKOUT)
    assert all(version.startswith("2.0.") for version in pins["sqlalchemy"])
    assert all(version < "0.151" for version in pins["fastapi"])
