"""Program of the stage `canary`: the candidate in a server that no client knows, asked as by clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema.pipeline import DataConfig, SmokeTestConfig
from tasks.answers import golden_requests, offline_answers, served
from tasks.answers.served import ServerConditions
from tasks.core.artifacts import Canary, Candidate, Check, Endpoint
from tasks.core.errors import Rejected
from tasks.examples.tf_examples import read_records
from tasks.in_tensorflow.smoke_test import latencies, latency_check
from tasks.servers.serving_client import ServingClient


def run(
    _progress: Callable[[Mapping[str, Any]], None],
    endpoint: Endpoint, candidate: Candidate, smoke_test: SmokeTestConfig, data: DataConfig,
    golden: Path | None = None,
) -> Canary:  # fmt: skip
    """Ask every signature by every API that it has; compare every number with the offline one.

    Golden requests are asked too, of the export in this process as well. Where the smoke test has a
    limit of p99, it is held here too. Raises Rejected, with all checks.
    """
    records = read_records([offline_answers.examples_file(candidate.offline)])
    timeout = smoke_test.request_timeout_seconds
    with ServingClient(endpoint.grpc, endpoint.model_name, timeout, endpoint.tls) as client:
        server = ServerConditions.of(endpoint, unknown_to_clients=True)
        asked = list(served.compared(client, candidate, records, data, server))
        checks = [_named(check) for found in asked for check in found.checks]
        _reject_failed(checks)
        if golden is not None:
            logs = golden_requests.read(golden)
            checks.append(_named(golden_requests.replayed(logs, client, candidate, server)))
            _reject_failed(checks)
        if smoke_test.latency_p99_limit_ms is not None:
            ask = served.default_api(client, candidate, data)
            p99 = float(np.percentile(latencies(ask, records, smoke_test.latency_requests), 99))
            checks.append(_named(latency_check(p99, smoke_test.latency_p99_limit_ms)))
            _reject_failed(checks)
    return Canary(tuple(checks), *served.summary(asked))


def _named(check: Check) -> Check:
    return replace(check, name=f"canary {check.name}")


def _reject_failed(checks: list[Check]) -> None:
    if problem := served.failed(checks):
        raise Rejected(problem, "nothing was published", tuple(checks))
