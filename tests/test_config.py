"""What a `pipeline.yaml` may say, and what is said of one that may not."""

from __future__ import annotations

import contextlib
import json
import re
import string
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from slipway_command import DIGITS

from configs.loading.errors import ConfigError
from configs.loading.pipelines import Pipeline, load_pipeline, parse_override
from configs.schema.features import FeatureSpec
from configs.schema.pipeline import PipelineConfig, ServerConfig

MINIMAL = """\
name: small
data:
  files: ["*.tfrecord"]
  features: {x: "float32[2]"}
  label: {y: int64}
model:
  estimator: LinearClassifier
"""


def _file(folder: Path, text: str) -> Path:
    file = folder / "pipeline.yaml"
    file.write_text(text)
    return file


def _refused(folder: Path, text: str, overrides: dict[str, Any] | None = None) -> str:
    """Return what is said of this YAML, with the file's path left out: `:line:column: …`."""
    file = _file(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_pipeline(file, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(str(file), "")


def _loaded(folder: Path, text: str, overrides: dict[str, Any] | None = None) -> Pipeline:
    return load_pipeline(_file(folder, text), overrides)


def _with(path: str, value: Any) -> dict[str, Any]:
    """Return the values of a minimal pipeline, one of them replaced."""
    values: dict[str, Any] = deepcopy(yaml.safe_load(MINIMAL))
    *parents, last = path.split(".")
    target = values
    for key in parents:
        target = target.setdefault(key, {})
    target[last] = value
    return values


def _valid(path: str, value: Any) -> PipelineConfig:
    return PipelineConfig.model_validate(_with(path, value))


class TestFile:
    """The file itself."""

    def test_a_minimal_pipeline_is_at_most_ten_lines(self, tmp_path: Path, home: Path) -> None:
        """Name, data and model are enough; all else has a default, and versions lie under the home."""
        loaded = _loaded(tmp_path, MINIMAL)
        assert len(MINIMAL.splitlines()) <= 10
        assert loaded.config.training.max_steps == 1000
        assert loaded.model_base_path == home / "models" / "small"

    def test_a_folder_and_its_file_are_the_same_pipeline(self, tmp_path: Path) -> None:
        """PIPELINE is a folder that holds pipeline.yaml, or a YAML file of any name."""
        file = _file(tmp_path, MINIMAL)
        other = tmp_path / "other.yaml"
        other.write_text(MINIMAL)
        assert load_pipeline(tmp_path) == load_pipeline(str(file))
        assert load_pipeline(other).folder == tmp_path

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        """The message holds the path that was looked for, and what to give instead."""
        with pytest.raises(ConfigError) as caught:
            load_pipeline(tmp_path / "nowhere.yaml")
        assert caught.value.message == f"{tmp_path}/nowhere.yaml: no such file"
        assert caught.value.hint == "name a folder that holds pipeline.yaml, or a YAML file"

    @pytest.mark.parametrize("asked", ["", "nowhere", "empty"])
    def test_pipelines_nearby_are_named(self, tmp_path: Path, asked: str) -> None:
        """For a folder without a pipeline.yaml, those inside it or beside it are named."""
        for name in ("first", "second", "empty"):
            (tmp_path / name).mkdir()
        _file(tmp_path / "first", MINIMAL)
        _file(tmp_path / "second", MINIMAL)
        with pytest.raises(ConfigError) as caught:
            load_pipeline(tmp_path / asked)
        assert caught.value.hint == f"pipelines there: {tmp_path}/first, {tmp_path}/second"

    def test_a_name_that_no_file_can_have(self, tmp_path: Path) -> None:
        """What the operating system says of the path is told as an error of the configuration."""
        with pytest.raises(ConfigError, match="File name too long"):
            load_pipeline(tmp_path / ("a" * 300))

    def test_a_file_that_is_not_text(self, tmp_path: Path) -> None:
        """A file that is not UTF-8 is refused with its name."""
        file = tmp_path / "pipeline.yaml"
        file.write_bytes(b"name: \xff\xfe")
        with pytest.raises(ConfigError, match=f"^{re.escape(str(file))}: cannot be read: .*utf-8"):
            load_pipeline(file)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("name: small\ndata: [1,\n  b: }\n", ":3:6: not valid YAML: expected the node content"),
            ("name: small\n\tdata: 1\n", ":2:1: not valid YAML: found character '\\t' that cannot start"),
            ("name: a: b\n", ":1:8: not valid YAML: mapping values are not allowed here"),
            ("- name\n", ":1:1: expected a mapping of keys, found list"),
            ("just words\n", ":1:1: expected a mapping of keys, found str"),
            ("name: a\n---\nname: b\n", ":2:1: not valid YAML: but found another document"),
        ],
        ids=["bracket", "tab", "colon", "list", "text", "documents"],
    )
    def test_a_syntax_error_has_line_and_column(self, tmp_path: Path, text: str, said: str) -> None:
        """The message begins with file:line:column."""
        assert _refused(tmp_path, text).startswith(said)

    @pytest.mark.parametrize(
        "text",
        [
            "name: a\0b",
            "a: !!bool x",
            "a: !!int ''",
            "a: !!timestamp",
            "a: 2001-99-99",
            "[" * 999,
            "? []\n: b",
        ],
        ids=["control", "bool", "int", "timestamp", "date", "deep", "list as key"],
    )
    def test_what_the_yaml_parser_chokes_on_is_refused(self, tmp_path: Path, text: str) -> None:
        """Whatever PyYAML raises, a user sees which file is not valid YAML."""
        assert ": not valid YAML: " in _refused(tmp_path, text)

    def test_a_value_that_holds_itself_is_refused(self, tmp_path: Path) -> None:
        """An alias inside what it is an alias of is told with its place."""
        said = _refused(tmp_path, f"{MINIMAL}  params: &all\n    again: *all\n")
        assert said.startswith(":8:11: 'model.params.again' is an alias of what it stands in")

    @pytest.mark.parametrize("tag", ["python/object/apply:os.system ['touch hit']", "python/name:os.system"])
    def test_tags_run_no_code(self, tmp_path: Path, tag: str) -> None:
        """Python tags are refused, with line and column, and nothing of them is run."""
        said = _refused(tmp_path, f"{MINIMAL}  params: !!{tag}\n")
        assert said.startswith(":8:11: not valid YAML: could not determine a constructor")
        assert not (tmp_path / "hit").exists()

    def test_an_empty_file_lacks_what_is_required(self, tmp_path: Path) -> None:
        """All that is missing is told at once."""
        said = _refused(tmp_path, "")
        assert [re.search("'(.*)' is required", line)[1] for line in said.splitlines()] == [  # type: ignore[index]
            "name", "data", "model",
        ]  # fmt: skip


class TestKeys:
    """Keys that are twice, unknown or missing."""

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (f"{MINIMAL}name: again\n", ":8:1: duplicate key 'name', first given in line 1"),
            (
                f"{MINIMAL}  estimator: Other\n",
                ":8:3: duplicate key 'model.estimator', first given in line 7",
            ),
            (
                f"{MINIMAL}  params:\n    layers:\n      - {{units: 1, units: 2}}\n",
                ":10:20: duplicate key 'model.params.layers[0].units', first given in line 10",
            ),
        ],
        ids=["top", "nested", "in a list"],
    )
    def test_a_duplicate_key_is_told_with_both_lines(self, tmp_path: Path, text: str, said: str) -> None:
        """YAML would silently keep the last one; the place is that of the second."""
        message, hint = _refused(tmp_path, text).splitlines()
        assert message == said
        assert "remove one of them" in hint

    @pytest.mark.parametrize(
        ("path", "near"),
        [
            ("trainin", "training"),
            ("training.max_step", "max_steps"),
            ("data.split.evla", "eval"),
            ("data.features.z.dtypo", "dtype"),
            ("evaluation.thresholds.accuracy.mn", "min"),
            ("answers.tolerance.rtl", "rtol"),
            ("model.feature_columns.linaer", "linear"),
        ],
    )
    def test_an_unknown_key_names_the_near_one(self, tmp_path: Path, path: str, near: str) -> None:
        """At every depth the message has the place of the key, its whole path, and what was meant."""
        text, key = yaml.safe_dump(_with(path, 1), sort_keys=False), path.rpartition(".")[2]
        line, row = next((n, row) for n, row in enumerate(text.splitlines(), 1) if f"{key}:" in row)
        expected = f":{line}:{row.index(key) + 1}: '{path}' is not a known key: did you mean '{near}'?"
        assert expected in _refused(tmp_path, text).splitlines()

    def test_an_unknown_key_in_a_feature_column(self, tmp_path: Path) -> None:
        """Inside a union the near name is one of the column of that kind."""
        columns = (
            "feature_columns: [{kind: embedding, of: {kind: vocabulary, key: x, vlaues: [1]}, dimension: 3}]"
        )
        said = _refused(tmp_path, f"{MINIMAL}  {columns}\n")
        assert ": 'model.feature_columns.0.of.vlaues' is not a known key: did you mean 'values'?" in said

    def test_an_unknown_key_like_no_other_gets_the_list(self, tmp_path: Path) -> None:
        """Where no known key is near, all that are known there are named."""
        said = _refused(tmp_path, f"{MINIMAL}deployment: {{xyzzy: 1}}\n")
        assert said == (
            ":8:14: 'deployment.xyzzy' is not a known key; known here: "
            "busy_timeout_seconds, canary, grpc_port, host, load_timeout_seconds, rest_port, target, "
            "when_busy"
        )

    def test_a_key_that_is_no_string(self, tmp_path: Path) -> None:
        """A number as a key is told, at its place, to be put in quotes."""
        assert ":8:1: '1': the key 1 is not a string: put it in quotes" in _refused(
            tmp_path, f"{MINIMAL}1: 2\n"
        )

    @pytest.mark.parametrize(
        ("line", "place", "missing"),
        [
            ("name: small", ":1:1", "name"),
            ('  features: {x: "float32[2]"}', ":2:1", "data.features"),
            ("model:\n  estimator: LinearClassifier", ":1:1", "model"),
        ],
    )
    def test_a_required_key_is_named(self, tmp_path: Path, line: str, place: str, missing: str) -> None:
        """The place is that of the mapping which lacks it."""
        said = _refused(tmp_path, MINIMAL.replace(f"{line}\n", ""))
        assert said == f"{place}: '{missing}' is required"

    def test_all_mistakes_are_told_at_once(self, tmp_path: Path) -> None:
        """Each has a line of its own."""
        said = _refused(tmp_path, f"{MINIMAL}training: {{max_steps: 0, batch_sise: 3}}\nexprot: {{}}\n")
        assert len(said.splitlines()) == 3


WRONG = [
    ("training.max_steps", "many", " = 'many': input should be a valid integer"),
    ("training.max_steps", 0, " = 0: input should be greater than 0"),
    ("training.max_steps", 1.5, " = 1.5: input should be a valid integer"),
    ("training.max_steps", [1], " = [1]: input should be a valid integer"),
    ("training.accelerator", "tpu", " = 'tpu': input should be 'auto', 'cpu' or 'gpu'"),
    ("training.keep_checkpoint_max", -1, " = -1: input should be greater than or equal to 0"),
    ("training", None, " = None: input should be a valid dictionary"),
    ("data.split.eval", 0, " = 0: input should be greater than 0"),
    ("data.split.eval", 1, " = 1: input should be less than 1"),
    ("data.ingest", "ingest.py", " = 'ingest.py': string should match pattern"),
    ("data.format", "orc", " = 'orc': input should be 'tfrecord', 'csv' or 'parquet'"),
    (
        "data.features.x",
        "float31",
        " = 'float31': 'float31' is not a feature: expected float32, int64 or string",
    ),
    ("data.features.x", "float32[0]", " = 0: input should be greater than 0"),
    ("data.features.x", 3, " = 3: input should be a valid dictionary"),
    ("model.params", [1], " = [1]: input should be a valid dictionary"),
    ("evaluation.thresholds.auc.min", "high", " = 'high': input should be a valid number"),
    ("evaluation.thresholds.auc.min", float("nan"), " = nan: input should be a finite number"),
    ("export.keep_versions", 1, " = 1: input should be greater than or equal to 2"),
    ("export.receivers", ["json"], ".0 = 'json': input should be 'parsing' or 'raw'"),
    ("export.receivers", [], " = []: tuple should have at least 1 item"),
    ("answers.batch_sizes", [0], ".0 = 0: input should be greater than or equal to 1"),
    ("answers.batch_sizes", ["some"], ".0 = 'some': input should be 'all'"),
    ("deployment.grpc_port", 65536, " = 65536: input should be less than or equal to 65535"),
    ("deployment.rest_port", -1, " = -1: input should be greater than or equal to 0"),
    ("deployment.load_timeout_seconds", 0, " = 0: input should be greater than 0"),
    ("deployment.load_timeout_seconds", float("inf"), " = inf: input should be a finite number"),
    ("deployment.target", "moon", " = 'moon': input should be 'auto', 'docker', 'process' or 'external'"),
    ("server.flags", {"x": [1]}, ".x = [1]: input should be a valid string"),
    ("answers.tolerance", "loose", " = 'loose': input should be 'auto' or 'exact'"),
    ("answers.tolerance", {"ulps": -1}, ".ulps = -1: input should be greater than or equal to 0"),
    ("answers.outputs", {"s": {"y": {"rtol": 2}}}, ".s.y.rtol = 2: input should be less than 1"),
    ("smoke_test.latency_requests", 3, " = 3: input should be greater than or equal to 20"),
    ("name", "Digits", " = 'Digits': string should match pattern"),
    ("name", "../x", " = '../x': string should match pattern"),
    ("name", 3, " = 3: input should be a valid string"),
]


@pytest.mark.parametrize(("path", "value", "said"), WRONG)
def test_a_wrong_type_or_range(tmp_path: Path, path: str, value: Any, said: str) -> None:
    """The message has the place, the key path, what was found and what is expected."""
    below, _, problem = said.partition(" = ")
    shown = f"'{path}{below}' = {problem}"
    message = _refused(tmp_path, yaml.safe_dump(_with(path, value), sort_keys=False))
    assert any(re.match(rf":\d+:\d+: {re.escape(shown)}", line) for line in message.splitlines()), message


ONE_SOURCE = "'data': give exactly one of 'ingest' (a callable) and 'files' (glob patterns)"
ONE_ORIGIN = (
    "'model': give exactly one of 'estimator' (canned), 'factory', 'graph' (callables) and 'saved_model'"
)
CONTRADICTIONS = [
    ("data.label", {"x": "int64"}, "'data': the label 'x' is also in 'features'"),
    ("data.ingest", "a.py:f", ONE_SOURCE),
    ("answers.tolerance", {"rtol": 0}, "'answers.tolerance': give 'rtol', 'atol' or both, above 0; for none"),
    ("data.files", None, ONE_SOURCE),
    ("data.split.by", "z", "'data': split.by names 'z', which is not one of x, y"),
    ("data.split", {"eval": 0.6, "sample": 0.5}, "'data.split': eval (0.6) and sample (0.5) leave nothing"),
    ("model.estimator", None, ONE_ORIGIN),
    ("model.factory", "m.py:f", ONE_ORIGIN),
    (
        "model",
        {"factory": "m.py:f", "feature_columns": []},
        "'model': a factory makes its own feature columns",
    ),
    (
        "training",
        {"save_checkpoints_steps": 1, "save_checkpoints_secs": 1},
        "'training': give one of 'save_checkpoints_steps' and 'save_checkpoints_secs'",
    ),
    ("evaluation.thresholds.auc", {}, "'evaluation.thresholds.auc': give 'min', 'max' or both"),
    (
        "evaluation.thresholds.auc",
        {"min": 2, "max": 1},
        "'evaluation.thresholds.auc': min 2.0 is above max 1.0",
    ),
    ("export.receivers", ["raw", "raw"], "'export': name each receiver once"),
    (
        "deployment",
        {"grpc_port": 900, "rest_port": 900},
        "'deployment': grpc_port and rest_port are both 900",
    ),
    ("deployment.grpc_port", 8501, "'deployment': grpc_port and rest_port are both 8501"),
    ("server", {"image": "a", "executable": "/b"}, "'server': give at most one of 'image' and 'executable'"),
    (
        "server",
        {"executable": "/b", "insecure": True, "limits": {"pids": 99}},
        "server.limits are a container's",
    ),
    ("server", {"executable": "/b"}, "'server': an executable may listen on all addresses, without TLS"),
    (
        "server",
        {"address": "0.0.0.0"},
        "'server': address 0.0.0.0 lets others in: give flags.ssl_config_file",
    ),
    (
        "server",
        {"address": "192.0.2.7", "insecure": True, "network": "host"},
        "'server': address is of a container in a network of its own",
    ),
    ("server", {"address": "192.0.2.7", "insecure": True}, "server.address needs deployment.target docker"),
    ("data.files", ["https://me:hunter2@host/x"], "an address holds a password: read it in data.ingest"),
    ("server.flags", {"rest_api_port": 1}, "'server': the flag 'rest_api_port' is set by Slipway"),
    ("server.flags", {"model_base_path": "/x"}, "'server': the flag 'model_base_path' is set by Slipway"),
]


@pytest.mark.parametrize(("path", "value", "said"), CONTRADICTIONS)
def test_keys_that_contradict_each_other(tmp_path: Path, path: str, value: Any, said: str) -> None:
    """The message has the place of the slice, and says which of them to give."""
    text = yaml.safe_dump(_with(path, value), sort_keys=False)
    assert re.fullmatch(rf":\d+:\d+: {re.escape(said)}.*", _refused(tmp_path, text))


def test_an_ingest_callable_writes_tfrecords(tmp_path: Path) -> None:
    """CSV is for files that are there."""
    text = MINIMAL.replace('files: ["*.tfrecord"]', "ingest: a.py:f\n  format: csv")
    assert _refused(tmp_path, text) == (
        ":2:1: 'data': an 'ingest' callable writes TFRecords: 'format' must be tfrecord"
    )


@pytest.mark.parametrize(
    ("server", "target", "needed"),
    [
        ("image: a", "process", "docker or auto, not process"),
        ("executable: /a, insecure: true", "docker", "process or auto, not docker"),
    ],
)
def test_a_server_that_does_not_fit_the_target(tmp_path: Path, server: str, target: str, needed: str) -> None:
    """An image cannot run as a process, nor a program in a container."""
    said = _refused(tmp_path, f"{MINIMAL}server: {{{server}}}\ndeployment: {{target: {target}}}\n")
    assert said == f":1:1: server.{server.partition(':')[0]} needs deployment.target {needed}"


def test_others_are_let_in_on_purpose_only() -> None:
    """With TLS, or with a word; loopback, whichever of its addresses, needs neither."""
    assert str(ServerConfig().address) == "127.0.0.1"
    for server in (
        {"address": "0.0.0.0", "flags": {"ssl_config_file": "keys.cfg"}},
        {"address": "0.0.0.0", "insecure": True},
        {"address": "127.0.0.9"},
    ):
        assert str(ServerConfig.model_validate(server).address) == server["address"]


def test_both_ports_may_be_picked() -> None:
    """Two zeros are no conflict: each stands for a free port."""
    assert _valid("deployment", {"grpc_port": 0, "rest_port": 0}).deployment.rest_port == 0


class TestFeatures:
    """Specs of features, short and long."""

    @given(
        dtype=st.sampled_from(["float32", "int64", "string"]),
        shape=st.lists(st.integers(1, 10**6), max_size=4),
        space=st.sampled_from(["", " "]),
    )
    def test_a_shorthand_says_dtype_and_shape(self, dtype: str, shape: list[int], space: str) -> None:
        """`float32[8,8]` is the long form with that dtype and shape, whatever the spaces."""
        inside = f",{space}".join(map(str, shape))
        short = f"{dtype}[{space}{inside}{space}]" if shape else dtype
        spec = FeatureSpec.model_validate(short)
        assert spec == FeatureSpec(kind="fixed_len", dtype=dtype, shape=tuple(shape))  # type: ignore[arg-type]
        assert spec == FeatureSpec.model_validate(json.loads(spec.model_dump_json()))
        assert spec.size == eval("*".join(map(str, shape)) or "1")

    @pytest.mark.parametrize("short", ["int64[]", "int64[ ]"])
    def test_empty_brackets_are_any_number(self, short: str) -> None:
        """`int64[]` is a var_len feature."""
        assert FeatureSpec.model_validate(short) == FeatureSpec(kind="var_len", dtype="int64")

    def test_float_is_float32(self) -> None:
        """There is one float type in a tf.Example."""
        assert FeatureSpec.model_validate("float[3]") == FeatureSpec.model_validate("float32[3]")

    @given(
        st.text(alphabet="floatin6432srg[], -0x\n", max_size=14) | st.from_regex(r"int64\[[0-9, ]*\]\n?\Z")
    )
    def test_no_other_shorthand_is_read(self, text: str) -> None:
        """What is not a dtype, with a list of sizes above 0 or without, is no feature."""
        size = " *0*[1-9][0-9]* *"
        good = re.fullmatch(rf"(float|float32|int64|string)(\[({size}(,{size})*| *)\])?", text)
        with contextlib.nullcontext() if good else pytest.raises(ValidationError):
            FeatureSpec.model_validate(text)

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            ({"kind": "var_len", "dtype": "int64", "shape": [2]}, "has no shape"),
            ({"kind": "var_len", "dtype": "int64", "default": 1}, "has no default"),
            ({"dtype": "int64", "default": "a"}, "'a' is not a int64"),
            ({"dtype": "string", "default": 1}, "1 is not a string"),
            ({"dtype": "int64", "default": 1.5}, "1.5 is not an int64"),
        ],
    )
    def test_a_long_form_that_contradicts_itself(self, spec: dict[str, Any], said: str) -> None:
        """A default must be of the dtype, and a var_len feature has neither default nor shape."""
        with pytest.raises(ValidationError, match=said):
            FeatureSpec.model_validate(spec)


COLUMNS = [
    {"kind": "numeric", "key": "x", "mean": 1, "std": 2},
    {"kind": "bucketized", "key": "x", "boundaries": [0, 1.5]},
    {"kind": "vocabulary", "key": "x", "values": ["a", "b"]},
    {"kind": "vocabulary", "key": "x", "file": "words.txt", "num_oov_buckets": 2},
    {"kind": "hash_bucket", "key": "x", "buckets": 10},
    {"kind": "identity", "key": "x", "buckets": 10, "default": 0},
    {"kind": "crossed", "keys": ["x", {"kind": "identity", "key": "y", "buckets": 3}], "buckets": 9},
    {"kind": "embedding", "of": {"kind": "hash_bucket", "key": "x", "buckets": 9}, "dimension": 4},
    {"kind": "indicator", "of": {"kind": "crossed", "keys": ["x", "y"], "buckets": 9}},
]


class TestFeatureColumns:
    """Feature columns, each of its kind."""

    @pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column["kind"])
    def test_every_kind_is_read(self, column: dict[str, Any]) -> None:
        """A list of columns, or a mapping for a combined Estimator, keeps what was said."""
        for form in ([column], {"linear": [column], "dnn": []}):
            config = _valid("model.feature_columns", form)
            dumped = config.model_dump(mode="json", exclude_unset=True)["model"]["feature_columns"]
            assert dumped == form

    @pytest.mark.parametrize(
        ("column", "said"),
        [
            ({"key": "x"}, "'model.feature_columns.0': lacks its 'kind'"),
            ({"kind": "numerc", "key": "x"}, "expected tags: 'numeric', 'bucketized'"),
            ({"kind": "numeric"}, "'model.feature_columns.0.key' is required"),
            ({"kind": "bucketized", "key": "x", "boundaries": [2, 1]}, "boundaries must rise"),
            ({"kind": "vocabulary", "key": "x"}, "give exactly one of 'values' and 'file'"),
            ({"kind": "crossed", "keys": ["x"], "buckets": 9}, "at least 2 items"),
            (
                {"kind": "crossed", "keys": ["x", {"kind": "identity", "key": "y"}], "buckets": 9},
                "'model.feature_columns.0.keys.1.buckets' is required",
            ),
            (
                {"kind": "embedding", "of": {"kind": "numeric", "key": "x"}, "dimension": 4},
                "'model.feature_columns.0.of': Input tag 'numeric' found",
            ),
            ({"kind": "indicator", "of": {"kind": "identity", "key": "x"}}, "0.of.buckets' is required"),
        ],
    )
    def test_a_column_that_is_wrong(self, tmp_path: Path, column: dict[str, Any], said: str) -> None:
        """The message has the index of the column, and the kinds or keys that there are."""
        text = yaml.safe_dump(_with("model.feature_columns", [column]), sort_keys=False)
        assert any(
            said in line and re.match(r":\d+:\d+: ", line) for line in _refused(tmp_path, text).splitlines()
        )


class TestOverrides:
    """`--set key.path=value`."""

    @pytest.mark.parametrize(
        ("text", "parsed"),
        [
            ("training.max_steps=5", ("training.max_steps", 5)),
            ("a = b=c", ("a", "b=c")),
            ("a=", ("a", None)),
            ("a=[1, x]", ("a", [1, "x"])),
            ("a={ulps: 4}", ("a", {"ulps": 4})),
            ("a='5'", ("a", "5")),
        ],
    )
    def test_the_value_is_yaml(self, text: str, parsed: tuple[str, Any]) -> None:
        """The first = ends the key; what follows has the type that YAML gives it."""
        assert parse_override(text) == parsed

    @pytest.mark.parametrize(
        "text",
        ["training.max_steps", "=3", " =3", "a=[", "a=!!bool x", "a=2001-99-99", "a=!!python/name:os.x"],
    )
    def test_what_is_no_override_is_refused(self, text: str) -> None:
        """The message repeats the option."""
        with pytest.raises(ConfigError, match=f"^--set {re.escape(repr(text))}: "):
            parse_override(text)

    @given(st.text(max_size=40))
    def test_any_text_is_an_override_or_an_error(self, text: str) -> None:
        """Nothing but a ConfigError is raised."""
        with contextlib.suppress(ConfigError):
            key, _ = parse_override(text)
            assert key == text.partition("=")[0].strip() != ""

    def test_an_override_wins(self, tmp_path: Path) -> None:
        """It replaces what the file says, adds what it does not, and the last of two on a path wins."""
        text = f"{MINIMAL}training: {{max_steps: 7, batch_size: 9}}\n"
        overrides = {
            "training.max_steps": 8,
            "export.keep_versions": 3,
            "training": {"seed": 4},
            "training.seed": 5,
        }
        config = _loaded(tmp_path, text, {"training.max_steps": 8}).config
        assert (config.training.max_steps, config.training.batch_size) == (8, 9)
        config = _loaded(tmp_path, text, overrides).config
        assert (config.export.keep_versions, config.training.seed, config.training.max_steps) == (3, 5, 1000)
        assert overrides["training"] == {"seed": 4}

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (
                {"training.max_stepz": 3},
                "--set training.max_stepz: 'training.max_stepz' is not a known key: did",
            ),
            (
                {"training.max_steps": "x"},
                "--set training.max_steps: 'training.max_steps' = 'x': input should be",
            ),
            (
                {"deployment.rest_port": 8500},
                "--set deployment.rest_port: 'deployment': grpc_port and rest_port",
            ),
            ({"data": {"files": ["a"], "label": {"y": "int64"}}}, "--set data: 'data.features' is required"),
            ({"name.x": 3}, "--set name.x: 'name': Input should be a valid string"),
            ({"data.files.x": 3}, "--set data.files.x: 'files' is a list in the file, expected a mapping"),
            ({"a..b": 3}, "--set a..b: 'a' is not a known key"),
        ],
    )
    def test_a_wrong_override_is_told_by_its_name(
        self, tmp_path: Path, overrides: dict[str, Any], said: str
    ) -> None:
        """The place is the option, not the file, which has nothing to do with it."""
        assert _refused(tmp_path, MINIMAL, overrides).startswith(said)

    def test_a_mistake_in_the_file_keeps_its_place(self, tmp_path: Path) -> None:
        """An override of another key does not take the blame."""
        said = _refused(tmp_path, f"{MINIMAL}training: {{max_steps: 0}}\n", {"training.seed": 3})
        assert said.startswith(":8:12: 'training.max_steps' = 0")


class TestYaml:
    """Anchors, aliases and merge keys."""

    SHARED = f"{MINIMAL}training: &same\n  batch_size: 5\nevaluation: *same\n"

    def test_an_alias_is_read(self, tmp_path: Path) -> None:
        """Both slices hold what was written once."""
        config = _loaded(tmp_path, self.SHARED).config
        assert config.training.batch_size == config.evaluation.batch_size == 5

    def test_an_override_changes_one_of_two_aliases(self, tmp_path: Path) -> None:
        """What stands under another key by an alias stays as it is in the file."""
        config = _loaded(tmp_path, self.SHARED, {"training.batch_size": 6}).config
        assert (config.training.batch_size, config.evaluation.batch_size) == (6, 5)

    def test_a_merge_key_is_read_and_yields(self, tmp_path: Path) -> None:
        """`<<` brings keys in; one that is given again wins, and a mistake in it has its own place."""
        text = (
            MINIMAL
            + "evaluation: &base\n  batch_size: 5\ntraining:\n  max_steps: 9\n  <<: *base\n  batch_size: "
        )
        config = _loaded(tmp_path, f"{text}7\n").config
        assert (config.evaluation.batch_size, config.training.batch_size) == (5, 7)
        assert _refused(tmp_path, f"{text}0\n").startswith(":13:3: 'training.batch_size' = 0")


class TestPaths:
    """The folder of versions."""

    @pytest.mark.parametrize(
        ("written", "expected"),
        [("models", "{folder}/models"), ("../m", "{folder}/../m"), ("/srv/m", "/srv/m")],
    )
    def test_it_is_relative_to_the_yaml(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, expected: str
    ) -> None:
        """Not to the folder in which the command is typed."""
        folder = tmp_path / "pipelines" / "small"
        folder.mkdir(parents=True)
        _file(folder, f"{MINIMAL}export: {{model_base_path: {written}}}\n")
        monkeypatch.chdir(tmp_path)
        loaded = load_pipeline("pipelines/small")
        assert loaded.folder == folder
        assert str(loaded.model_base_path) == expected.format(folder=folder)


class TestRoundTrip:
    """The configuration as JSON: how it travels to other processes and into Prefect."""

    @pytest.mark.parametrize(
        "text", [MINIMAL, (DIGITS / "pipeline.yaml").read_text()], ids=["minimal", "digits"]
    )
    def test_json_gives_the_same_configuration(self, tmp_path: Path, text: str) -> None:
        """Dumped as JSON and read again, it is equal to what it was."""
        config = _loaded(tmp_path, text).config
        dumped = json.loads(json.dumps(config.model_dump(mode="json")))
        assert PipelineConfig.model_validate(dumped) == config

    def test_every_kind_of_value_survives(self, tmp_path: Path) -> None:
        """Unions (columns, tolerances, flags, defaults) come back as the same member."""
        values = {
            **_with("model.feature_columns", {"linear": COLUMNS[:4], "dnn": COLUMNS[4:]}),
            "answers": {
                "tolerance": {"ulps": 4},
                "batch_sizes": [3, "all"],
                "outputs": {"s": {"y": "exact", "z": {"rtol": 0.1}}},
            },
            "server": {"flags": {"a": True, "b": 1, "c": 1.0, "d": "true"}},
            "export": {"model_base_path": "models", "receivers": ["raw", "parsing"]},
        }
        values["data"]["features"]["z"] = {"dtype": "float32", "shape": [2, 3], "default": 0.5}
        config = _loaded(tmp_path, yaml.safe_dump(values)).config
        again = PipelineConfig.model_validate_json(config.model_dump_json())
        assert again == config
        assert [type(flag) for flag in again.server.flags.values()] == [bool, int, float, str]

    def test_a_configuration_is_frozen(self, tmp_path: Path) -> None:
        """A stage cannot change what the next one reads."""
        config = _loaded(tmp_path, MINIMAL).config
        with pytest.raises(ValidationError, match="frozen"):
            config.training.max_steps = 3  # type: ignore[misc]


KEYS = sorted({*PipelineConfig.model_fields, "ingest", "files", "features", "label", "kind", "x"})
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


YAML_PARTS = [*" \n\t-:?[]{}&*!|>#'\"%@`,a1", "<<: ", "*a", "&a ", "!!int ", "!!set ", "name: x\n"]


class TestAnything:
    """Whatever the file holds, it is a pipeline or a ConfigError."""

    @staticmethod
    def _load(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pipeline.yaml"
            file.write_bytes(data)
            try:
                load_pipeline(file)
            except ConfigError as error:
                told = error.message
            else:
                return
        assert str(file) in told

    @settings(max_examples=150, deadline=None)
    @given(
        st.text(alphabet=string.printable, max_size=40)
        | st.text(max_size=20)
        | st.lists(st.sampled_from(YAML_PARTS), max_size=30).map("".join)
    )
    def test_any_text(self, text: str) -> None:
        """No text makes load_pipeline raise anything else, and the message names the file."""
        self._load(text.encode("utf-8", "surrogatepass"))

    @settings(max_examples=150, deadline=None)
    @given(
        st.dictionaries(st.sampled_from(sorted(PipelineConfig.model_fields)), VALUES, max_size=4),
        st.booleans(),
    )
    def test_any_values(self, values: dict[str, Any], on_top_of_a_valid_one: bool) -> None:
        """No mapping does either, be it instead of a valid pipeline or on top of one."""
        base = yaml.safe_load(MINIMAL) if on_top_of_a_valid_one else {}
        self._load(yaml.safe_dump({**base, **values}).encode())
