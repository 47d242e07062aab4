from __future__ import annotations

import pytest

from katsura.placement.problem import SPLIT, UNIFIED, Effort, Problem
from katsura.testing.clusters import cards, model_service, node_class, problem_of


@pytest.fixture
def effort() -> Effort:
    """Stops on the gap alone, so that the answer never depends on the machine."""
    return Effort(gap=0.0, seconds=None)


@pytest.fixture
def small() -> Problem:
    """Two models on a mixed cluster of 12 nodes in two zones."""
    small_model, _, large_model, _ = cards()
    services = [
        model_service("chat", small_model, 20, domains_min=2),
        model_service("big", large_model, 2, topologies=(UNIFIED, SPLIT)),
    ]
    return problem_of(
        services,
        [node_class("A100-80", 3), node_class("A100-80", 3, domain="b"), node_class("L4", 6, per_node=4, domain="b")],
    )
