"""What one run may be told in place of its YAML: the form's types and limits, dry run and force."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from configs.loading.overrides import OFFERED, Overrides, given


def test_the_form_has_the_schemas_limits() -> None:
    """Prefect refuses a wrong value by this JSON Schema, before a run begins."""
    fields = Overrides.model_json_schema()["properties"]
    assert list(fields) == list(OFFERED)
    steps = fields["training.max_steps"]
    assert (steps["type"], steps["exclusiveMinimum"]) == ("integer", 0)
    assert sorted(fields["deployment.target"]["enum"]) == ["auto", "docker", "external", "process"]
    assert [field["position"] for field in fields.values()] == list(range(len(OFFERED)))
    assert all(field["title"] == path for path, field in fields.items())
    assert "training.max_steps (more than 0; default 1000). " in steps["description"]


def test_what_the_form_sends_is_taken() -> None:
    """It sends null for a text that was left empty; Prefect checks that by the flow's JSON Schema."""
    from prefect.utilities.schema_tools.validation import validate

    from flows.retrain import retrain
    from flows.retrain_and_deploy import retrain_and_deploy

    sent = {"pipeline": "configs/digits", "run_id": None, "resume": None, "overrides": {"training.seed": 5}}
    for flow in (retrain, retrain_and_deploy):
        schema = flow.parameters.model_dump()
        assert validate(sent, schema, raise_on_error=False) == []
        (refused,) = validate({**sent, "overrides": {"training.seed": "x"}}, schema, raise_on_error=False)
        assert list(refused.path) == ["overrides", "training.seed"]


def test_its_fields_are_boxes_that_may_stay_empty() -> None:
    """A choice of `int` or `None` would come first, and a refusal name neither field nor limit."""
    schema = Overrides.model_json_schema()
    assert "required" not in schema
    assert not [path for path, field in schema["properties"].items() if {"anyOf", "default"} & set(field)]


@pytest.mark.parametrize("wrong", [{"training.max_steps": -5}, {"deployment.target": "cloud"}])
def test_a_wrong_value_is_refused(wrong: dict[str, Any]) -> None:
    """By the same limits as in the YAML."""
    with pytest.raises(ValidationError):
        Overrides.model_validate(wrong)


def test_any_other_path_may_be_given() -> None:
    """It is checked when the run reads its configuration."""
    told = {"training.max_steps": 5, "model.params": {"hidden_units": [3]}, "training.cluster": None}
    assert given(Overrides.model_validate(told)) == told


def test_what_the_form_leaves_empty_is_not_given() -> None:
    """The YAML's value stays."""
    assert given(Overrides.model_validate(dict.fromkeys(OFFERED))) == {}
    assert given(None) == {}


def test_force_passes_over_the_gate_on_metrics() -> None:
    """And over nothing else."""
    assert given({"training.seed": 2}, force=True) == {"training.seed": 2, "evaluation.gate": "reported"}
