"""A TF1 graph in place of an Estimator: trained, exported as MetaGraphs, validated; and loaded in C++."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
import tensorflow as tf
from pipelines import run_of, written
from running_programs import running_programs
from test_training import StopAt, steps_saved

from configs.loading.errors import ConfigError
from configs.schema.features import FeatureSpec
from configs.schema.pipeline import AnswersConfig
from tasks.core.artifacts import Candidate, Checkpoint
from tasks.core.errors import ModelError, ProcessDied, Rejected
from tasks.examples.tf_examples import serialize, write_records
from tasks.in_tensorflow import evaluate, export, ingest, train, validate
from tasks.processes import tensorflow_process
from tasks.processes.tensorflow_process import ignore_progress

GRAPH = """
import pathlib
import tensorflow as tf
tf1 = tf.compat.v1
WORDS = pathlib.Path(__file__).with_name("words.txt")

def build_graph(features, labels, tags, params):
    weights = tf1.get_variable("weights", [2, 2])
    logits = tf.matmul(features["x"], weights)
    if "serve" in tags:
        words = tf.lookup.StaticHashTable(tf.lookup.TextFileInitializer(
            str(WORDS), tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
            tf.string, tf.lookup.TextFileIndex.WHOLE_LINE), "?")
        signatures = {
            "serving_default": {"outputs": {"word": words.lookup(tf.argmax(logits, 1))}},
            "first": {"method": "regress", "outputs": {"outputs": logits[:, :1]}},
        }
        if tags == ("serve", "odd"):
            signatures["other"] = {"outputs": {"logits": logits}}
        if tags == ("serve", "wrong"):
            signatures["first"]["outputs"]["outputs"] += 1.0
        return {"signatures": signatures}
    loss = tf1.losses.sparse_softmax_cross_entropy(labels, logits)
    if "eval" in tags:
        return {"loss": loss, "metrics": {"accuracy": tf1.metrics.accuracy(labels, tf.argmax(logits, 1))}}
    step = tf1.train.AdamOptimizer(params["rate"]).minimize(loss, tf1.train.get_global_step())
    return {"loss": loss, "train_op": step}

def no_train_op(features, labels, tags, params):
    return {"loss": tf.constant(1.0)}

def unknown_key(features, labels, tags, params):
    return {"loss": 1, "train_op": 1, "signature": {}}

def bad_method(features, labels, tags, params):
    return build_graph(features, labels, tags, params) if "serve" not in tags else {
        "signatures": {"serving_default": {"method": "ask", "outputs": {"y": features["x"]}}}}
"""


class Exported:
    """A small graph pipeline, run up to its validation in this process."""

    def __init__(self, folder: Path, function: str = "build_graph", **config: Any) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "graph.py").write_text(GRAPH)
        (folder / "words.txt").write_text("left\nright\n")
        specs = {"x": FeatureSpec(dtype="float32", shape=(2,)), "y": FeatureSpec(dtype="int64")}
        records = [serialize({"x": [i / 10 - 10, 1.0], "y": [i > 100]}, specs) for i in range(200)]
        write_records(folder / "all.tfrecord", records)
        model = {"graph": f"graph.py:{function}", "params": {"rate": 0.1}}
        pipeline = written(folder, {"model": model, "data": {
            "files": ["*.tfrecord"], "features": {"x": "float32[2]"}, "label": {"y": "int64"},
            "split": {"sample": 0.2},
        }, **config})  # fmt: skip
        self.config, self.run = pipeline.config, run_of(pipeline, folder)
        self.examples = ingest.run(ignore_progress, self.config.data, self.run)

    def trained(self, max_steps: int) -> Any:
        training = self.config.training.model_copy(update={"max_steps": max_steps})
        return train.run(
            ignore_progress, self.config.model, training, self.config.data, self.examples, self.run
        )

    def trained_in_child(self, on_progress: StopAt, **training: int) -> Any:
        """Train for ever, as a flow does it, until `on_progress` stops that."""
        this = self.config
        asked = {"max_steps": 1_000_000, "log_every_steps": 50, **training}
        return tensorflow_process.run(
            "train", Checkpoint, log=self.run.log("train"), on_progress=on_progress,
            timeout_seconds=240, arguments={
                "model": this.model, "training": this.training.model_copy(update=asked), "data": this.data,
                "examples": self.examples, "run": self.run,
            },
        )  # fmt: skip

    def exported(self, checkpoint: Any) -> Candidate:
        this = self.config
        return export.run(
            ignore_progress, this.model, this.training, this.export, this.data, self.examples, checkpoint,
            AnswersConfig(samples=20), self.run,
        )  # fmt: skip

    def validated(self, candidate: Candidate) -> Any:
        return validate.run(ignore_progress, self.config.validation, self.config.data, candidate)


THREE = {"meta_graphs": [["serve"], ["serve", "gpu"], ["train"]], "receivers": ["parsing", "raw"]}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Exported, Any, Candidate]:
    """Trained for 20 steps, and exported as three MetaGraphs."""
    pipeline = Exported(tmp_path_factory.mktemp("graph"), export=THREE)
    checkpoint = pipeline.trained(20)
    return pipeline, checkpoint, pipeline.exported(checkpoint)


def test_it_resumes_and_is_evaluated_as_estimators_are(tmp_path: Path) -> None:
    """Trained on, it goes on from its checkpoint; metrics have the names that the function gives."""
    pipeline = Exported(tmp_path)
    assert pipeline.trained(5).global_step == 5
    resumed = pipeline.trained(9)
    assert (resumed.global_step, resumed.resumed_from) == (9, 5)
    recipe = pipeline.config.recipe
    found = evaluate.run(
        ignore_progress, recipe, pipeline.config.answers, pipeline.examples, resumed, pipeline.run
    )
    assert 0 <= found.metrics["accuracy"] <= 1


def _trainer() -> psutil.Process:
    (found,) = running_programs()
    return found


def test_it_saves_when_it_is_stopped_and_resumes_when_it_was_killed(tmp_path: Path) -> None:
    """SIGTERM to its child saves the step reached; kill -9 is retryable, from the last checkpoint."""
    pipeline = Exported(tmp_path)
    stop = StopAt(lambda: _trainer().terminate())
    with pytest.raises(ProcessDied, match="exit code 143"):
        pipeline.trained_in_child(stop, save_checkpoints_steps=1_000_000)
    saved = steps_saved(pipeline.run)[-1]
    assert saved >= stop.step > 0
    with pytest.raises(ProcessDied, match="killed by SIGKILL"):
        pipeline.trained_in_child(StopAt(lambda: _trainer().kill(), saved + 300), save_checkpoints_steps=100)
    killed = steps_saved(pipeline.run)[-1]
    assert killed > saved
    resumed = pipeline.trained(killed + 5)
    assert (resumed.resumed_from, resumed.global_step) == (killed, killed + 5)


def test_meta_graphs_share_one_set_of_variables_and_assets(small: Any) -> None:
    """Three graphs, the variables of the one with the optimizer's, one file of words."""
    _, _, candidate = small
    assert candidate.tag_sets == ("serve", "serve,gpu", "train")
    assert candidate.assets == ("words.txt",)
    names = {name for name, _ in tf.train.list_variables(str(candidate.path / "variables" / "variables"))}
    assert {"weights", "weights/Adam", "global_step"} <= names
    assert len(list((candidate.path / "variables").iterdir())) == 2


def test_the_signatures_have_the_standard_names(small: Any) -> None:
    """As an Estimator's: method names, aliases, and `raw:` for the second receiver."""
    _, _, candidate = small
    found = {each.name: (each.method, each.receiver, list(each.outputs)) for each in candidate.signatures}
    assert found == {
        "serving_default": ("predict", "parsing", ["word"]),
        "first": ("regress", "parsing", ["outputs"]),
        "raw:serving_default": ("predict", "raw", ["word"]),
    }


def test_every_serving_meta_graph_is_validated(small: Any) -> None:
    """Each answers as the checkpoint does, the one for GPUs too."""
    pipeline, _, candidate = small
    checks = {check.name for check in pipeline.validated(candidate).checks}
    assert {"first", "serve,gpu: first"} <= checks


def test_a_meta_graph_that_answers_otherwise_is_rejected(tmp_path: Path) -> None:
    """Though the one that our server would load is right."""
    pipeline = Exported(tmp_path, export={"meta_graphs": [["serve"], ["serve", "wrong"]]})
    with pytest.raises(Rejected) as caught:
        pipeline.validated(pipeline.exported(pipeline.trained(2)))
    failed = {check.name for check in caught.value.checks if not check.passed}
    assert failed and all(name.startswith("serve,wrong: first") for name in failed)


def test_a_signature_that_only_another_meta_graph_has(tmp_path: Path) -> None:
    """There is nothing to compare it with, so it is not exported."""
    pipeline = Exported(tmp_path, export={"meta_graphs": [["serve"], ["serve", "odd"]]})
    with pytest.raises(ModelError, match="serve,odd has the signature 'other', which the one tagged serve"):
        pipeline.exported(pipeline.trained(2))


def test_the_training_graph_trains_on(small: Any, tmp_path: Path) -> None:
    """Loaded by the tag train, it gives the loss of tf.Examples, and a train_op that lowers it."""
    pipeline, checkpoint, candidate = small
    records = [
        record.numpy() for record in tf.data.TFRecordDataset([str(pipeline.examples.train.files[0])]).take(50)
    ]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.loader.load(session, ["train"], str(candidate.path))
        signature = graph.signature_def["train"]
        feeds = {signature.inputs["examples"].name: records}
        step = graph.collection_def["saved_model_train_op"].node_list.value[0]
        before = session.run(signature.outputs["loss"].name, feeds)
        for _ in range(20):
            session.run(step, feeds)
        assert session.run(signature.outputs["loss"].name, feeds) < before
        assert session.run(tf.compat.v1.train.get_global_step()) == checkpoint.global_step + 20


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_train_op", "of what it returned there is no 'train_op'"),
        ("unknown_key", "of what it returned 'signature' is not known"),
        ("bad_method", "signature 'serving_default': expected {method, outputs"),
    ],
)
def test_functions_that_break_the_contract(tmp_path: Path, function: str, message: str) -> None:
    """The error says which part of it."""
    pipeline = Exported(tmp_path, function)
    with pytest.raises(ModelError, match=message):
        pipeline.exported(pipeline.trained(1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"export": {"meta_graphs": [["serve"], ["train"]]}}, "export.meta_graphs are of a graph"),
        (
            {"model": {"graph": "g.py:f"}, "export": {"meta_graphs": [["train"]]}},
            r"name each tag set once, and \[serve\] among them",
        ),
        (
            {"model": {"graph": "g.py:f"}, "export": {"meta_graphs": [["serve"], ["gpu"]]}},
            "each has the tag serve or the tag train",
        ),
        ({"model": {"graph": "g.py:f", "factory": "g.py:f"}}, "give exactly one of 'estimator'"),
    ],
)
def test_what_the_configuration_refuses(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    """Before anything runs."""
    with pytest.raises(ConfigError, match=message):
        written(tmp_path, config)


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/load_saved_model.cc, compiled against the headers and libraries of the wheel."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++) is here")
    libraries, program = tf.sysconfig.get_lib(), tmp_path_factory.mktemp("cc") / "load"
    if not Path(libraries, "libtensorflow_cc.so.2").is_file():
        pytest.skip(f"this TensorFlow has no libtensorflow_cc.so.2 in {libraries}")
    source = Path(__file__).with_name("load_saved_model.cc")
    subprocess.run(
        [compiler, "-O0", *tf.sysconfig.get_compile_flags(), str(source), "-o", str(program),
         f"-L{libraries}", "-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2",
         f"-Wl,-rpath,{libraries}"],
        check=True, timeout=240,
    )  # fmt: skip
    return program


@pytest.mark.parametrize("tags", [("serve",), ("serve", "gpu")])
def test_cpp_loads_it_by_its_tags(small: Any, loader: Path, tags: tuple[str, ...]) -> None:
    """SavedModelBundle and LoadSavedModel: the word that Python gets, out of the asset."""
    _, _, candidate = small
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.loader.load(session, list(tags), str(candidate.path))
        signature = graph.signature_def["raw:serving_default"]
        (word,) = session.run(signature.outputs["word"].name, {signature.inputs["x"].name: [[3.0, 1.0]]})
    found = subprocess.run(
        [loader, candidate.path, *tags], capture_output=True, text=True, timeout=120, check=True
    )
    assert found.stdout.strip() == word.decode() in ("left", "right")


def test_cpp_says_that_there_are_no_such_tags(small: Any, loader: Path) -> None:
    """So that the test above cannot pass by loading anything."""
    found = subprocess.run(
        [loader, small[2].path, "serve", "tpu"], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 1
    assert "Could not find meta graph def matching supplied tags" in found.stderr
