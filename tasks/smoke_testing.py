"""Stage 8, smoke-test: the new version answers over real gRPC, and every number is the offline one."""

from __future__ import annotations

from configs.schema.pipeline import DataConfig, GoldenConfig, SmokeTestConfig
from tasks.core.artifacts import Candidate, Endpoint, Run, SmokeTest
from tasks.deploys import rollouts, served_answers, server_lines
from tasks.reports import prefect_artifacts, smoke_test_page
from tasks.runs.stages import report, stage
from tasks.state import deploy_journal


@stage("smoke-test", run_name="smoke-test version {endpoint.version} of {run.pipeline}")
def smoke_test(
    endpoint: Endpoint, candidate: Candidate, smoke_test: SmokeTestConfig, data: DataConfig,
    golden: GoldenConfig, run: Run,
) -> SmokeTest:  # fmt: skip
    """Prove that the endpoint answers with the new version, as `estimator.predict` did, and goes on to.

    While it is watched, golden requests are asked too. The deploy is over then: a server that was replaced
    for this version is forgotten. Raises SmokeTestFailed, with all checks.
    """
    recorded = golden.recorded(run.source)
    with server_lines.told(run.pipeline):
        proof = served_answers.prove(endpoint, candidate, smoke_test, data, run, report, golden=recorded)
    deploy_journal.note(run, "smoke-tested")
    rollouts.settle(run.pipeline)
    journal = deploy_journal.of_run(run)
    if journal is not None:
        deploy_journal.conclude(journal, "committed")
    prefect_artifacts.show(f"{run.pipeline}-smoke-test", smoke_test_page.as_markdown(proof, endpoint))
    return proof
