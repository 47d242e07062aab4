"""What people read of pods that do not come up."""

from __future__ import annotations

from typing import Any

import pytest

from katsura_operator.core.trouble import failure_of, trouble_of


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


def test_what_is_only_coming_is_no_trouble_where_one_waits_for_an_end() -> None:
    assert trouble_of([pod(**waiting("ContainerCreating", ""))], coming=False) == ""
    assert trouble_of([pod(**waiting("ImagePullBackOff", "no such"))], coming=False) == "p: ImagePullBackOff no such"


@pytest.mark.parametrize("when", ["state", "lastState"])
def test_a_container_that_failed_tells_its_own_words_also_when_it_is_started_again(when: str) -> None:
    ended = {"exitCode": 1, "message": "the store does not answer\n", "reason": "Error"}
    assert failure_of([pod(containerStatuses=[{when: {"terminated": ended}}])]) == "p: the store does not answer"
    assert failure_of([pod(containerStatuses=[{when: {"terminated": {"exitCode": 0}}}])]) == ""
    killed = {"exitCode": 137, "reason": "OOMKilled"}
    assert failure_of([pod(containerStatuses=[{when: {"terminated": killed}}])]) == "p: exit code 137 OOMKilled"
