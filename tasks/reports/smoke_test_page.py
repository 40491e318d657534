"""A smoke test as a person reads it in the Prefect UI."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.core.artifacts import Endpoint, SmokeTest
from tasks.reports import markdown


def as_markdown(proof: SmokeTest, endpoint: Endpoint) -> str:
    """Render it: what answers and where, how fast, and each check."""
    return "\n".join(_lines(proof, endpoint))


def _lines(proof: SmokeTest, endpoint: Endpoint) -> Iterator[str]:
    yield f"# {markdown.mark(True)} {endpoint.model_name} version {endpoint.version} answers"
    model = f"{endpoint.rest}/v1/models/{endpoint.model_name}"
    yield from ("", f"{proof.summary()}.", "")
    yield f"gRPC `{endpoint.grpc}` · REST <{model}> · [signatures]({model}/metadata) · {endpoint.server}"
    yield from markdown.pictures(proof.pictures)
    yield from ("", "| check | rule | observed | |", "|---|---|---|---|")
    for check in proof.checks:
        cells = (check.name, check.rule, markdown.shown(check.observed), markdown.mark(check.passed))
        yield markdown.row(*cells)
