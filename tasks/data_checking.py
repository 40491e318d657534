"""Between ingest and train, check-data: tonight's examples against `data.gates`."""

from __future__ import annotations

from pathlib import Path

from configs.schema.data_gates import DataGates
from tasks.core.artifacts import DataReview, Examples, Run
from tasks.core.errors import DataError
from tasks.data_quality import checks, statistics
from tasks.data_quality.checks import Before
from tasks.evaluations import thresholds
from tasks.exports import extra_assets, source_digests
from tasks.runs.stages import stage
from tasks.servers import served_versions

_CONFIG = "config.yaml"
_HINT = "nothing was trained; look at tonight's data, or say data.gates.missed: report to be told only"


@stage("check-data", run_name="check the data of {run.pipeline}", resumable=True)
def check_data(gates: DataGates, examples: Examples, run: Run) -> DataReview:
    """Hold the examples against every limit, and against those that the served version was made of.

    Raises Rejected with all checks where one is missed and `gates.missed` is reject; DataError where
    ingest left no statistics.
    """
    file = statistics.in_examples(run.folder)
    tonight = statistics.read(file)
    if tonight is None:
        raise DataError(f"{file} is not there, or not what ingest writes", "start a new run")
    served = served_versions.served(run)
    if served is not None and extra_assets.read_manifest(served[1]).get("run_id") == run.run_id:
        served = None  # this run published it, was killed, and goes on
    found = checks.check(tonight, gates, _before(served))
    if gates.missed == "reject":
        thresholds.refuse_failed(found, "data", _HINT)
    return DataReview(found, _needless(gates, examples, run, served))


def _before(served: tuple[int, Path] | None) -> Before | None:
    if served is None:
        return None
    number, folder = served
    return Before(number, statistics.read(extra_assets.private_folder_in(folder) / statistics.NAME))


def _needless(gates: DataGates, examples: Examples, run: Run, served: tuple[int, Path] | None) -> str:
    """Return why there is nothing new to train on; "" if there is, or if the pipeline always trains."""
    if served is None or gates.unchanged == "train":
        return ""
    number, folder = served
    manifest = extra_assets.read_manifest(folder)
    same_data = manifest.get("data_sha256") == examples.digest
    configs = (each / _CONFIG for each in (extra_assets.private_folder_in(folder), run.folder))
    then, now = map(source_digests.made_by, configs)
    if not (same_data and now and then == now and extra_assets.same_inputs(run, manifest)):
        return ""
    same = "examples, configuration, code and TensorFlow"
    return f"{same} are those of version {number}, which is served: nothing to train"
