"""What people read of pods that do not come up."""

from __future__ import annotations

from typing import Any

import pytest

from katsura_operator.core.report import trouble_of


def pod(**status: Any) -> dict[str, Any]:
    return {"kind": "Pod", "metadata": {"name": "p"}, "status": status}


def waiting(reason: str, message: str) -> dict[str, Any]:
    return {"containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}]}


NOT_SCHEDULED = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"conditions": [NOT_SCHEDULED]}, "p is not scheduled: 0/3 nodes are available"),
        (waiting("ImagePullBackOff", "no such image"), "p: ImagePullBackOff no such image"),
        (waiting("ContainerCreating", ""), "p: ContainerCreating"),
        ({}, ""),
    ],
)
def test_the_first_pod_that_is_not_ready_says_why(status: dict[str, Any], said: str) -> None:
    ready = pod(conditions=[{"type": "Ready", "status": "True"}])
    assert trouble_of([ready, pod(**status)]) == said


def test_a_namespace_without_the_secret_is_told_how_to_get_it() -> None:
    said = trouble_of([pod(**waiting("CreateContainerConfigError", 'secret "katsura" not found'))])
    assert said.startswith('p: CreateContainerConfigError secret "katsura" not found; install the chart')
    assert "operator.enabled=false" in said
