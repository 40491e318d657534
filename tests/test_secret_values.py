"""Secrets of `data.secrets`: there for ingest, and in nothing that is kept or shown of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelines import written
from slipway_command import Slipway

from configs.loading.errors import ConfigError
from tasks.core import masking
from tasks.core.errors import EnvironmentFault
from tasks.runs import secret_values

VALUE = 'hunter2/"ü'
INGEST = """
import logging, os, sys
from urllib.parse import quote
def write(folder):
    value = os.environ["WAREHOUSE"]
    assert value == 'hunter2/"ü'
    print("printed", value, flush=True)
    logging.getLogger("tensorflow").warning("warned of %s", value)
    logging.getLogger("tensorflow").warning("%s %s", "across the cut ".ljust(475, "-"), value)
    raise RuntimeError(f"no route to https://me:{quote(value, safe='')}@warehouse, password {value}")
"""


def pipeline(folder: Path, source: str) -> Path:
    """A pipeline whose ingest tells its secret in every way that it has."""
    data = {
        "ingest": "nightly.py:write", "secrets": {"WAREHOUSE": source},
        "features": {"x": "float32[2]"}, "label": {"y": "int64"},
    }  # fmt: skip
    (folder / "nightly.py").parent.mkdir(exist_ok=True)
    (folder / "nightly.py").write_text(INGEST)
    return written(folder, {"data": data, "deployment": {"target": "process"}}).folder


def everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_it_is_nowhere_in_what_is_kept_and_shown(slipway: Slipway, tmp_path: Path) -> None:
    """Terminal, run folder, verdict, and all of Prefect's data base: logs, states and artifacts."""
    failed = slipway.run(pipeline(tmp_path / "p", "environment"), WAREHOUSE=VALUE)
    assert failed.exit_code == 1
    told = failed.verdict["error"]["message"]
    assert "no route to https://me:***@warehouse, password ***" in told
    kept = everything_in(slipway.home) + failed.output.encode()
    assert b"printed ***" in kept and b"warned of ***" in kept
    assert b"across the cut" in kept
    for form in (VALUE, "hunter2", "hunte"):
        assert form.encode() not in kept


def test_one_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name, and where it should be; a value that could be any word is as good as none."""
    for value in ("", "abc"):
        monkeypatch.setenv("WAREHOUSE", value)
        with pytest.raises(EnvironmentFault, match="WAREHOUSE: in the environment it is not set"):
            secret_values.resolved({"WAREHOUSE": "environment"})


def test_a_prefect_block_has_it(prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Secret block of that name; where there is none, that is told."""
    from prefect.blocks.system import Secret
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_api}):
        Secret(value=VALUE).save("warehouse-of-this-test", overwrite=True)
        assert secret_values.resolved({"W": "block:warehouse-of-this-test"}) == {"W": VALUE}
        with pytest.raises(EnvironmentFault, match="no Prefect block secret/none-of-this-name"):
            secret_values.resolved({"W": "block:none-of-this-name"})


@pytest.mark.parametrize("source", ["hunter2-hunter2", 20261122, "block:hunter2-\n", ["hunter2"]])
def test_one_in_place_of_its_source_is_not_repeated(tmp_path: Path, source: Any) -> None:
    """An error goes to the terminal, to Prefect and into a verdict; it says where the secret belongs."""
    data = {"ingest": "nightly.py:write", "secrets": {"WAREHOUSE": source},
            "features": {"x": "float32[2]"}, "label": {"y": "int64"}}  # fmt: skip
    with pytest.raises(ConfigError, match=r"data\.secrets\.WAREHOUSE.*a secret never stands") as refused:
        written(tmp_path, {"data": data})
    assert "hunter2" not in str(refused.value) and "2026" not in str(refused.value)


@pytest.mark.parametrize(
    "written_as",
    [
        lambda value: value,
        quote,
        lambda value: quote(value, safe=""),
        lambda value: urlencode({"password": value}),
        lambda value: json.dumps({"password": value}),
        lambda value: json.dumps({"password": value}, ensure_ascii=False),
        lambda value: f"{value!r}",
        lambda value: f"{value.encode()!r}",
    ],
)
def test_it_is_masked_however_it_is_written(written_as: Callable[[str], str]) -> None:
    """In a URL's path, in its query, in JSON, and as Python shows text and bytes."""
    said = masking.masked(["at " + written_as('a/b c"ü\\d')], ['a/b c"ü\\d'])[0]
    assert masking.MASK in said
    assert not any(part in said for part in ("a/b", "a%2Fb"))


@given(st.lists(st.text() | st.integers()) | st.dictionaries(st.text(), st.lists(st.text())))
def test_what_holds_no_secret_is_left_as_it_is(said: Any) -> None:
    """Of any form."""
    assert masking.masked(said, ["hunter2-hunter2"]) == said
