"""Journeys of a stranger with real CSV files, as PyPI packages ship them, from `slipway init` to answers."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slipway_command import REPOSITORY, Finished, Slipway, user_environment

from configs.loading.pipelines import load_pipeline
from flows.command.cli import main

WEATHER = ("vega_datasets", "_data/seattle-weather.csv", ())
AIRPORTS = ("vega_datasets", "_data/airports.csv", ())
PENGUINS = ("palmerpenguins", "data/penguins-raw.csv", ("--label", "Species"))


def _begun(folder: Path, name: str, source: tuple[str, str, tuple[str, ...]], *, spreadsheet: bool) -> Path:
    """Copy the file, as it is or as a spreadsheet on Windows writes it, and make a pipeline of it."""
    package, path, options = source
    found = importlib.util.find_spec(package)
    assert found is not None and found.submodule_search_locations is not None
    file = Path(found.submodule_search_locations[0]) / path
    sample = folder / f"{name}.csv"
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    with sample.open("w", encoding="cp1252" if spreadsheet else "utf-8", newline="") as stream:
        csv.writer(stream, delimiter=";" if spreadsheet else ",").writerows(rows)
    made = folder / name
    assert main(["init", name, str(sample), *options, "--folder", str(made)]) == 0
    assert main(["check", str(made)]) == 0
    return made


class TestPenguins:
    """Names with spaces, units and slashes; NA; comments, ids and dates; from a Windows spreadsheet."""

    @pytest.fixture(scope="class")
    def pipeline(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """What `slipway init` made of it."""
        return _begun(tmp_path_factory.mktemp("penguins"), "penguins", PENGUINS, spreadsheet=True)

    @pytest.fixture(scope="class")
    def deployed(self, pipeline: Path, module_slipway: Slipway) -> Iterator[Finished]:
        """The first night, as init left it."""
        yield module_slipway.run(pipeline)
        module_slipway("stop", pipeline)

    def test_what_init_made_of_it(self, pipeline: Path) -> None:
        """Delimiter and encoding are found; comments, ids, dates and constants are no features."""
        data = load_pipeline(pipeline).config.data
        assert (data.delimiter, data.encoding) == (";", "utf-8")
        assert "Culmen Length (mm)" in data.features and data.features["Sex"].default == ""
        left_out = {"Region", "Stage", "Individual ID", "Date Egg", "Comments"}
        assert not left_out & set(data.features)
        assert all(f"# {name}: " in (pipeline / "pipeline.yaml").read_text() for name in left_out)

    def test_it_is_deployed_and_tells_species_apart(self, deployed: Finished) -> None:
        """By as much as anybody's model of these does."""
        assert (deployed.exit_code, deployed.verdict["outcome"]) == (0, "deployed"), deployed.output
        assert deployed.verdict["metrics"]["accuracy"] > 0.9

    def test_it_is_asked(self, deployed: Finished, pipeline: Path, module_slipway: Slipway) -> None:
        """By the species' names."""
        asked = module_slipway("ask", pipeline)
        assert asked.exit_code == 0, asked.output
        assert "Penguin (Pygoscelis" in asked.output or "penguin (Pygoscelis" in asked.output


@pytest.fixture(scope="module")
def trained(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The verdicts of the other two, both trained in one process."""
    folder = tmp_path_factory.mktemp("nights")
    made = [_begun(folder, name, source, spreadsheet=False)
            for name, source in (("weather", WEATHER), ("airports", AIRPORTS))]  # fmt: skip
    program = Path(__file__).with_name("flows_in_one_process.py")
    environment = {**user_environment(folder / "home"), "PREFECT_API_URL": prefect_api}
    done = subprocess.run(
        [sys.executable, str(program), *map(str, made)], cwd=REPOSITORY, capture_output=True, text=True,
        timeout=600, env={**environment, "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {"folder": folder, **json.loads(done.stdout.splitlines()[-1])}


def test_the_weather(trained: dict[str, Any]) -> None:
    """Five classes, one of them rare; the date is no feature."""
    verdict = trained["weather"]
    assert (verdict["outcome"], verdict["error"]) == ("trained", None)
    assert verdict["metrics"]["accuracy"] > 0.6
    assert set(load_pipeline(trained["folder"] / "weather").config.data.features) == {
        "precipitation", "temp_max", "temp_min", "wind",
    }  # fmt: skip


def test_airports(trained: dict[str, Any]) -> None:
    """A number from words with gaps, quotes and thousands of names, which are no features."""
    verdict = trained["airports"]
    assert (verdict["outcome"], verdict["error"]) == ("trained", None)
    features = load_pipeline(trained["folder"] / "airports").config.data.features
    assert "state" in features and not {"iata", "name"} & set(features)
