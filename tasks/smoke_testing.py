"""Stage 8, smoke-test: the new version answers over real gRPC, and every number is the offline one."""

from __future__ import annotations

from configs.schema import DataConfig, SmokeTestConfig
from tasks import server_records, tensorflow_process
from tasks.artifacts import Candidate, Endpoint, Run, SmokeTest
from tasks.stages import report, stage


@stage("smoke-test", run_name="smoke-test version {endpoint.version} of {run.pipeline}")
def smoke_test(
    endpoint: Endpoint, candidate: Candidate, smoke_test: SmokeTestConfig, data: DataConfig, run: Run
) -> SmokeTest:
    """Prove that the endpoint answers with the new version, as `estimator.predict` did.

    A server that was replaced for this version is forgotten: the new one is proven. Raises
    SmokeTestFailed, with all checks.
    """
    proof = tensorflow_process.run(
        "smoke_test",
        SmokeTest,
        log=run.log("smoke-test"),
        on_progress=report,
        arguments={
            "endpoint": endpoint,
            "candidate": candidate,
            "smoke_test": smoke_test,
            "data": data,
            "run": run,
        },
        prepare_next=False,
    )
    server_records.settle(run.pipeline)
    return proof
