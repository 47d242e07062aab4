from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.cost import ErrorClass
from katsura.placement.document import document, inputs_hash, read_current, running, schema
from katsura.placement.planner import plan
from katsura.placement.problem import Effort, Problem
from katsura.placement.tally import LIMITS


def test_every_document_keeps_its_schema_and_states_its_gap(small: Problem, effort: Effort) -> None:
    for problem in (small, replace(small, budget_usd=1.0)):
        made = document(plan(problem, effort), problem)
        jsonschema.validate(made, schema())
        assert made["status"]["gap"] >= 0


def test_the_schema_names_every_error_class_and_limit() -> None:
    service = schema()["properties"]["status"]["properties"]["services"]["items"]["properties"]
    assert service["estimate"]["enum"] == [c.value for c in ErrorClass]
    assert set(service["point"]["properties"]["limitedBy"]["enum"]) == {*LIMITS, "batch"}


def test_what_runs_is_read_back_as_it_was_written(small: Problem, effort: Effort) -> None:
    made = plan(small, effort)
    back = read_current(json.dumps(document(made, small)))
    assert back.counts == running(made).counts == made.counts
    assert back.held == running(made).held


def test_a_hash_tells_problems_apart(small: Problem) -> None:
    assert inputs_hash(small) == inputs_hash(replace(small))
    assert inputs_hash(small) != inputs_hash(replace(small, budget_usd=5.0))


@pytest.mark.parametrize("text", ["", "{}", '{"kind": "Node"}', "[]", '{"kind": "PlacementPlan"}'])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="not a PlacementPlan"):
        read_current(text)
