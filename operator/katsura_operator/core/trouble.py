"""What pods say of themselves when they do not run, so that nobody has to open them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from katsura_operator.core.objects import Object, is_true, name_of

_MISSING_SECRET: Final = re.compile(r'secret "[^"]+" not found')
_NO_SECRET: Final = "; install the chart into this namespace too (operator.enabled=false), or make the Secret yourself"
_COMING: Final = frozenset(("ContainerCreating", "PodInitializing"))


def trouble_of(pods: Sequence[Object], *, coming: bool = True) -> str:
    """What the first pod that is not ready says of itself, also that it is `coming`; empty where it says nothing."""
    for pod in pods:
        if is_true(pod, "Ready"):
            continue
        if unscheduled := _unscheduled(pod):
            return unscheduled
        for container in _containers(pod):
            waiting = (container.get("state") or {}).get("waiting")
            if waiting and (coming or waiting.get("reason") not in _COMING):
                said = f"{name_of(pod)}: {waiting.get('reason', '')} {waiting.get('message', '')}".strip()
                return said + (_NO_SECRET if _MISSING_SECRET.search(said) else "")
    return ""


def homeless_of(pods: Sequence[Object]) -> str:
    """What the scheduler says of the first pod that it has no node for; empty where each has one."""
    return next((said for pod in pods if (said := _unscheduled(pod))), "")


def failure_of(pods: Sequence[Object]) -> str:
    """Why a container ended last, by its own words; empty where none failed."""
    for pod in pods:
        for container in _containers(pod):
            for state in (container.get("state") or {}, container.get("lastState") or {}):
                ended = state.get("terminated") or {}
                if ended.get("exitCode"):
                    said = str(ended.get("message") or f"exit code {ended['exitCode']} {ended.get('reason', '')}")
                    return f"{name_of(pod)}: {said.strip()}"
    return ""


def _unscheduled(pod: Object) -> str:
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"{name_of(pod)} is not scheduled: {condition.get('message', '')}"
    return ""


def _containers(pod: Object) -> Iterator[Object]:
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()
