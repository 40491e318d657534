"""PlusOne, an op that TensorFlow lacks, and a pipeline whose graph has it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import tensorflow as tf
import yaml
from slipway_command import REPOSITORY

PLAIN_GRAPH = REPOSITORY / "configs" / "plain_graph"
IN_MODEL = 'tf.math.log1p(features["measures"])'
LOADED = 'tf.load_op_library(str(Path(__file__).with_name("plus_one.so")))'
WITH_OP = f'tf.math.log({LOADED}.plus_one(features["measures"]))'


def compiled(target: Path, build: int = 1) -> Path:
    """Compile tests/plus_one.cc; another build is another file."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++) is here")
    libraries = tf.sysconfig.get_lib()
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", f"-DBUILD={build}", f"-I{libraries}/include",
         str(Path(__file__).with_name("plus_one.cc")), "-o", str(target), f"-L{libraries}",
         "-l:libtensorflow_framework.so.2"],
        check=True, timeout=240,
    )  # fmt: skip
    return target


def pipeline(folder: Path, library: Path, *ops: str) -> Path:
    """Write the plain graph with PlusOne in it, the library beside it, and `server.ops`."""
    shutil.copytree(PLAIN_GRAPH, folder)
    graph = (folder / "graph.py").read_text()
    assert IN_MODEL in graph
    (folder / "graph.py").write_text(
        graph.replace(IN_MODEL, WITH_OP).replace("from typing", "from pathlib import Path\nfrom typing")
    )
    shutil.copy(library, folder / "plus_one.so")
    config = yaml.safe_load((folder / "pipeline.yaml").read_text())
    config["server"] = {"ops": list(ops)}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(config))
    return folder
