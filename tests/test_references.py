"""Callables named in a pipeline's YAML."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.core.errors import ModelError
from tasks.core.references import resolve


@pytest.fixture(autouse=True)
def _imports_as_before() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def _resolve(reference: str, folder: Path) -> Callable[..., Any]:
    return resolve(reference, folder, "model.factory", ModelError)


def _refused(reference: str, folder: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        _resolve(reference, folder)
    return caught.value


def test_a_function_in_a_file_beside_the_yaml(tmp_path: Path) -> None:
    """`file.py:function` is relative to the YAML's folder, whatever the working directory."""
    (tmp_path / "factory.py").write_text("def build(): return 42\n")
    assert _resolve("factory.py:build", tmp_path)() == 42


def test_a_function_in_a_package() -> None:
    """`package.module:function` is imported."""
    assert _resolve("json.decoder:JSONDecoder", Path()) is json.JSONDecoder


def test_a_file_can_import_its_neighbours(tmp_path: Path) -> None:
    """The pipeline's folder is on sys.path, and a neighbour gets the same module back."""
    (tmp_path / "vocabulary_of_test.py").write_text("WORDS = ['a']\n")
    (tmp_path / "factory_of_test.py").write_text(
        "import vocabulary_of_test\n"
        "def build():\n    import factory_of_test\n    return factory_of_test.build is build\n"
    )
    assert _resolve("factory_of_test.py:build", tmp_path)()


def test_a_file_named_like_a_loaded_module_is_still_the_file(tmp_path: Path) -> None:
    """A pipeline's `json.py` does not become everyone's json."""
    (tmp_path / "json.py").write_text("def build(): return 'mine'\n")
    assert _resolve("json.py:build", tmp_path)() == "mine"
    assert sys.modules["json"] is json


def test_a_missing_file_is_named_in_full(tmp_path: Path) -> None:
    """The message holds the key, the reference and the absolute path."""
    error = _refused("factory.py:build", tmp_path)
    assert error.message == f"model.factory = 'factory.py:build': no such file: {tmp_path / 'factory.py'}"
    assert "relative to the YAML" in error.hint


def test_a_file_that_does_not_import_is_an_error_with_its_line(tmp_path: Path) -> None:
    """What its import raised, and the line of the pipeline's own file, are shown."""
    (tmp_path / "broken.py").write_text("x = 1\nimport no_such_module\n")
    error = _refused("broken.py:build", tmp_path)
    assert (
        "broken.py:build' does not import: ModuleNotFoundError: No module named 'no_such_module'"
        in error.message
    )
    assert f"{tmp_path / 'broken.py'}:2" in error.message
    assert "broken" not in sys.modules


def test_a_syntax_error_is_an_error_with_its_line(tmp_path: Path) -> None:
    """Python's own place is kept."""
    (tmp_path / "broken.py").write_text("def build(:\n")
    assert "SyntaxError: invalid syntax (broken.py, line 1)" in _refused("broken.py:build", tmp_path).message


def test_a_file_that_opens_a_missing_file_is_not_called_missing(tmp_path: Path) -> None:
    """FileNotFoundError from within the module is the module's failure."""
    (tmp_path / "reads.py").write_text("open('no such words.txt')\n")
    error = _refused("reads.py:build", tmp_path)
    assert "does not import: FileNotFoundError" in error.message
    assert f"{tmp_path / 'reads.py'}:1" in error.message


def test_a_missing_module_is_an_error() -> None:
    """So is a package that is not installed."""
    assert "No module named 'no_such_package'" in _refused("no_such_package.x:build", Path()).message


def test_a_misspelt_function_names_the_near_one(tmp_path: Path) -> None:
    """The module's own functions are the candidates, not what it imports."""
    (tmp_path / "factory.py").write_text("from json import loads\ndef build_estimator(): pass\n")
    error = _refused("factory.py:build_estimater", tmp_path)
    assert f"{tmp_path / 'factory.py'} has no 'build_estimater'" in error.message
    assert error.hint == "did you mean 'build_estimator'?"
    assert _refused("factory.py:zzz", tmp_path).hint == "functions there: build_estimator"


def test_what_is_not_callable_is_an_error(tmp_path: Path) -> None:
    """Expected and found are named."""
    (tmp_path / "factory.py").write_text("build = 3\n")
    assert "expected a function, found int 3" in _refused("factory.py:build", tmp_path).message
