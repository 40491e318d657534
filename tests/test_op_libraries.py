"""`server.ops`: graphs with ops that TensorFlow lacks, from training to the server's port."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from model_server_fixtures import RunningServer, StartServer
from op_library import compiled, pipeline
from slipway_command import Slipway

from tasks.core import op_libraries
from tasks.core.errors import EnvironmentFault, ModelError
from tasks.exports import row_independence

pytest_plugins = ["model_server_fixtures"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, compiled."""
    return compiled(tmp_path_factory.mktemp("ops") / "plus_one.so")


# It loads the library, which this process must not: an op stays registered.
EXPORT = """
import sys, tensorflow as tf
ops = tf.load_op_library(sys.argv[1])
class Model(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 1], name="x")])
    def __call__(self, x):
        return {"y": ops.plus_one(x)}
model = Model()
tf.saved_model.save(model, sys.argv[2], signatures={"serving_default": model.__call__})
"""


@pytest.fixture(scope="module")
def base_path(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 has the op in a function, and says which build of the library it was made with."""
    base = tmp_path_factory.mktemp("base")
    subprocess.run(
        [sys.executable, "-c", EXPORT, library, base / "1"], check=True, timeout=240, capture_output=True
    )
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    (base / "1" / "assets.extra").mkdir()
    (base / "1" / "assets.extra" / "serving.json").write_text(json.dumps({"ops": {library.name: digest}}))
    return base


def answer(server: RunningServer) -> object:
    """Return what the op makes of 1 and 2.5, over REST."""
    return server.post("/v1/models/plus:predict", {"instances": [[1.0], [2.5]]})


class TestServer:
    """The model server alone, by its port and its log."""

    def test_serves_a_version_with_the_library_it_was_made_with(
        self, base_path: Path, library: Path, start_server: StartServer
    ) -> None:
        """And refuses other shapes than the signature's: kernels of others may abort at them."""
        server = start_server(
            base_path, name="plus", MODEL_SERVER_OPS=str(library), MODEL_SERVER_PROCESSES="2"
        )
        assert answer(server) == (200, {"predictions": [[2.0], [3.5]]})

        refused = server.post("/v1/models/plus:predict", {"inputs": [1.0, 2.5]})
        assert refused == (400, {"error": "tensor parsing error: x: shape [2], expected [-1, 1]"})

    def test_refuses_a_version_without_the_library(self, base_path: Path, start_server: StartServer) -> None:
        """The error names the file, and the setting that loads it."""
        server = start_server(base_path, "--max_num_load_retries=0", name="plus", wait=False)
        assert server.exit_code() == 255
        assert "was made with the op library plus_one.so" in server.log
        assert "has loaded no such library. Start a server with MODEL_SERVER_OPS=<path of" in server.log

    def test_refuses_another_build_of_the_library(
        self, base_path: Path, tmp_path: Path, start_server: StartServer
    ) -> None:
        """Its op might compute something else."""
        other = compiled(tmp_path / "plus_one.so", build=2)
        server = start_server(
            base_path, "--max_num_load_retries=0", name="plus", wait=False, MODEL_SERVER_OPS=str(other)
        )
        assert server.exit_code() == 255
        assert "has loaded another build of it" in server.log

    def test_names_the_ops_that_it_does_not_know(
        self, base_path: Path, tmp_path: Path, start_server: StartServer
    ) -> None:
        """Of a version that says nothing of libraries, as the official server's users have them."""
        shutil.copytree(base_path, tmp_path / "base")
        (tmp_path / "base" / "1" / "assets.extra" / "serving.json").unlink()
        server = start_server(tmp_path / "base", "--max_num_load_retries=0", name="plus", wait=False)
        assert server.exit_code() == 255
        assert "Unknown ops of the graph: PlusOne. Name the libraries that have them in" in server.log

    @pytest.mark.parametrize(("content", "message"), [
        (None, "cannot be read: No such file or directory"), (b"text", "does not load: "),
    ])  # fmt: skip
    def test_does_not_start_without_its_libraries(
        self, content: bytes | None, message: str, base_path: Path, tmp_path: Path, start_server: StartServer
    ) -> None:
        """Rather than to refuse every version later."""
        file = tmp_path / "plus_one.so"
        if content is not None:
            file.write_bytes(content)
        server = start_server(base_path, name="plus", wait=False, MODEL_SERVER_OPS=str(file))
        assert server.exit_code() == 255
        assert f"MODEL_SERVER_OPS: {file} {message}" in server.log


class TestPipeline:
    """`slipway run` of a model with a custom op."""

    def test_serves_a_model_with_a_custom_op(self, library: Path, tmp_path: Path, slipway: Slipway) -> None:
        """Trained, exported, validated, asked in a canary and served, with the checksum in the version."""
        done = slipway.run(pipeline(tmp_path / "custom", library, "plus_one.so"), "deployment.canary=true")
        assert done.exit_code == 0, done.output
        (number,) = slipway.versions("plain-graph")
        version = next((slipway.home / "models" / "plain-graph").glob(f"*{number}"))
        digest = hashlib.sha256(library.read_bytes()).hexdigest()
        stated = json.loads((version / "assets.extra" / "serving.json").read_text())
        assert stated == {"ops": {"plus_one.so": digest}}
        assert slipway.record("plain-graph")["ops"] == [str(tmp_path / "custom" / "plus_one.so")]
        compared = slipway("diff", tmp_path / "custom", str(number), str(number))
        assert compared.exit_code == 0, compared.output

    def test_does_not_export_ops_that_are_not_declared(
        self, library: Path, tmp_path: Path, slipway: Slipway
    ) -> None:
        """Although the model's code loads the library itself, and so could train."""
        done = slipway.run(pipeline(tmp_path / "custom", library), "training.max_steps=300", flow="retrain")
        assert done.exit_code != 0
        assert "has ops that no declared library has: PlusOne" in done.output
        assert "server.ops: [path/to/library.so or an installed package]" in done.output


# What the packages need of others; TensorFlow and numpy are those of the product.
PACKAGES = (
    "tensorflow-text==2.15.0", "tensorflow-decision-forests==1.8.1", "tensorflow-recommenders-addons==0.7.2",
    "tensorflow-hub==0.15.0", "setuptools==75.8.0", "pandas==2.1.4", "wurlitzer==3.0.3", "typeguard==2.13.3",
    "pytz==2024.1", "python-dateutil==2.9.0", "six==1.16.0",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages, downloaded: the product's locks have none of them."""
    folder = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder, *PACKAGES]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"the packages cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.parametrize(("kind", "package", "inputs", "outputs"), [
    ("text", "tensorflow-text", ["a B c", "HELLO"], {"words": [3, 1], "folded": ["a b c", "hello"]}),
    ("forest", "tensorflow-decision-forests", {"x": [10.0, 300.0]}, [[0.0], [1.0]]),
    ("table", "tensorflow-recommenders-addons", [7, 8], [[3.0, 4.0], [1.0, 1.0]]),
])  # fmt: skip
def test_serves_models_of(
    kind: str, package: str, inputs: Any, outputs: Any, site: Path, tmp_path: Path,
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Over REST; a shape that is not the signature's is refused, at which a forest's kernel would abort."""
    subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__).with_name("op_packages.py"), kind, tmp_path / "1"],
        env={**os.environ, "PYTHONPATH": str(site)}, check=True, timeout=240,
    )  # fmt: skip
    monkeypatch.syspath_prepend(site)
    libraries = op_libraries.found([package], tmp_path)
    ops = os.pathsep.join(str(each.path) for each in libraries)
    server = start_server(tmp_path, name="plus", MODEL_SERVER_OPS=ops)
    assert server.post("/v1/models/plus:predict", {"inputs": inputs}) == (200, {"outputs": outputs})
    other = {"x": [[10.0], [300.0]]} if kind == "forest" else [[each] for each in inputs]
    status, refused = server.post("/v1/models/plus:predict", {"inputs": other})
    assert (status, refused["error"]) == (400, "tensor parsing error: x: shape [2, 1], expected [-1]")
    assert server.post("/v1/models/plus:predict", {"inputs": inputs}) == (200, {"outputs": outputs})


def test_an_unknown_op_is_named_with_what_to_declare(base_path: Path) -> None:
    """By the stage export, which runs the server's own program; TestPipeline has the whole flow."""
    with pytest.raises(ModelError, match="has ops that no declared library has: PlusOne") as caught:
        row_independence.dependences(base_path / "1")
    assert caught.value.hint == "declare it: server.ops: [path/to/library.so or an installed package]"


class TestFound:
    """What `server.ops` names on this machine."""

    def test_a_package_means_its_libraries_of_ops(
        self, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Python's extension modules and other shared objects in it are left out."""
        folder = tmp_path / "some_ops" / "core"
        folder.mkdir(parents=True)
        (tmp_path / "some_ops" / "__init__.py").write_text("raise RuntimeError('it was imported')")
        shutil.copy(library, folder / "_plus_one.so")
        (folder / "module.so").write_bytes(library.read_bytes() + b"PyInit_module")
        (folder / "other.so").write_bytes(b"nothing")
        monkeypatch.syspath_prepend(tmp_path)
        (found,) = op_libraries.found(["some-ops"], tmp_path)
        assert found.path == folder / "_plus_one.so"
        assert found.sha256 == hashlib.sha256(library.read_bytes()).hexdigest()

    @pytest.mark.parametrize(("ops", "message"), [
        (["missing.so"], "server.ops: no such file: "),
        (["no-such-package"], "server.ops: no package no-such-package is installed"),
        (["yaml_without"], "server.ops: the package yaml_without has no library of TensorFlow ops"),
        (["a/same.so", "b/same.so"], "server.ops: two libraries are named same.so"),
    ])  # fmt: skip
    def test_what_is_refused(
        self, ops: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before anything runs."""
        for name in ("a/same.so", "b/same.so", "yaml_without/__init__.py"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(EnvironmentFault, match=message):
            op_libraries.found(ops, tmp_path)
