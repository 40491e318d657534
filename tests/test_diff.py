"""`slipway diff`: what two versions were made of, their metrics, and their answers to the same questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from deployed_worlds import World
from model_server_fixtures import Models, models  # noqa: F401  (a fixture)

from configs.loading.errors import ConfigError
from flows.command.cli import main
from tasks.answers import answer_differences
from tasks.deploys.version_differences import differences
from tasks.exports import extra_assets

FLOATS = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, np.nan]], np.float32)

pytestmark = pytest.mark.timeout(600)  # TensorFlow starts in processes of their own


def of(first: Any, second: Any) -> Any:
    (found,) = answer_differences.of_signature("s", {"y": np.array(first)}, {"y": np.array(second)}, {})
    return found


class TestAnswers:
    """Arrays of two versions' answers."""

    def test_equal_ones_differ_nowhere(self) -> None:
        """NaN equals NaN, and infinities themselves."""
        for same in (FLOATS, [[np.inf], [-np.inf]], [b"a", b"b"], [1, 2]):
            found = of(same, same)
            assert (found.differing, found.furthest, found.largest or 0) == (0, (), 0)

    def test_the_furthest_example_comes_first(self) -> None:
        """By the largest number in its row; what is not a number is infinitely far."""
        found = of(FLOATS, FLOATS + np.array([[0, 0.5], [2, 0], [0, 0]], np.float32))
        assert (found.examples, found.differing, found.largest) == (3, 2, 2.0)
        assert [row.example for row in found.furthest] == [1, 0]
        assert (found.furthest[0].first, found.furthest[0].second) == ("3, 4", "5, 4")
        assert of([1.0, 2.0], [np.nan, 3.0]).furthest[0].example == 0

    def test_strings_are_counted(self) -> None:
        """They have no distance."""
        found = of([[b"a", b"b"], [b"c", b"d"]], [[b"a", b"b"], [b"c", b"e"]])
        assert (found.differing, found.largest, found.furthest[0].second) == (1, None, "c, e")

    def test_other_shapes_are_told(self) -> None:
        """Nothing is compared then."""
        assert of([[1.0]], [[1.0, 2.0]]).note == "differ: float64[1, 1] and float64[1, 2]"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, models: Models) -> World:  # noqa: F811
    """Versions 1 and 2 of a model: what the second says is one more, of every example."""
    folder = tmp_path_factory.mktemp("world")
    made = World(folder, models, folder / "models")
    for number, accuracy in ((1, 0.9), (2, 0.95)):
        version = made.base / str(number)
        run_id = made.candidate(number)
        (made.base / f".candidate-{run_id}").rename(version)
        manifest = {"seed": number, "examples": 10, "metrics": {"accuracy": accuracy}}
        extra_assets.folder_in(version).mkdir(exist_ok=True)
        (extra_assets.folder_in(version) / "manifest.json").write_text(json.dumps(manifest))
        config = {"training": {"max_steps": 100 * number, "batch_size": 8}}
        (extra_assets.private_folder_in(version) / "config.yaml").write_text(yaml.safe_dump(config))
    return made


def test_two_versions_are_asked_about_the_same_examples(world: World) -> None:
    """Configuration by key path, metrics side by side, and answers that lie one apart."""
    found = differences(world.pipeline, "1", "2", 3)
    assert [(row.key, row.first, row.second) for row in found.config] == [("training.max_steps", 100, 200)]
    assert [(row.key, row.first, row.second) for row in found.origin] == [("seed", 1, 2)]
    assert [(row.key, row.first, row.second) for row in found.metrics] == [("accuracy", 0.9, 0.95)]
    (output,) = found.outputs
    assert (output.examples, output.differing, output.largest) == (3, 3, 1.0)


def test_it_is_printed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """For people as tables; a folder does for a number; as JSON with all that there is."""
    folder = str(world.pipeline.folder)
    assert main(["diff", folder, "1", str(world.base / "1")]) == 0
    out = capsys.readouterr().out
    assert "configuration: the same" in out
    assert "0 of 4" in out
    assert main(["diff", folder, "1", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"][0]["differing"] == 4


@pytest.mark.parametrize("saved_model", ["saved_model.pb", "saved_model.pbtxt"])
def test_a_version_without_kept_answers_is_compared_by_the_rest(
    world: World, tmp_path: Path, saved_model: str
) -> None:
    """One that was put there by hand does not say how it is asked; as text it is one, too."""
    byhand = tmp_path / "byhand"
    byhand.mkdir()
    (byhand / saved_model).write_bytes(b"")
    found = differences(world.pipeline, "1", str(byhand), 3)
    assert found.outputs == ()
    assert f"{byhand} does not say how it is asked" in found.note


@pytest.mark.parametrize("named", ["7", "nowhere"])
def test_a_version_that_is_not_there_is_told(world: World, named: str) -> None:
    """With those that are."""
    with pytest.raises(ConfigError, match=f"'{named}' is neither a version in") as caught:
        differences(world.pipeline, named, "2", 3)
    assert "there are: 1, 2" in caught.value.hint
