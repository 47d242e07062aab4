from __future__ import annotations

from typing import Any

import pytest

from katsura_operator.core.signature import signature

NODE: dict[str, Any] = {
    "kind": "Node",
    "metadata": {"uid": "u", "labels": {"a": "1"}, "resourceVersion": "1"},
    "spec": {},
    "status": {"allocatable": {"cpu": "4"}, "conditions": [{"type": "Ready", "status": "True", "heartbeat": 1}]},
}


def changed(**parts: Any) -> dict[str, Any]:
    return {**NODE, **{k: {**NODE[k], **v} for k, v in parts.items()}}


def test_a_heartbeat_means_nothing() -> None:
    beat = changed(status={"conditions": [{"type": "Ready", "status": "True", "heartbeat": 2}]})
    assert signature(changed(metadata={"resourceVersion": "2"})) == signature(NODE)
    assert signature(beat) == signature(NODE)


@pytest.mark.parametrize(
    "parts",
    [
        {"status": {"conditions": [{"type": "Ready", "status": "False"}]}},
        {"status": {"allocatable": {"cpu": "2"}}},
        {"spec": {"unschedulable": True}},
        {"metadata": {"labels": {"a": "2"}}},
        {"metadata": {"deletionTimestamp": "now"}},
    ],
)
def test_what_a_plan_reads_means_something(parts: dict[str, Any]) -> None:
    assert signature(changed(**parts)) != signature(NODE)


def test_our_own_status_of_our_own_kinds_means_nothing() -> None:
    pool: dict[str, Any] = {"kind": "RolePool", "metadata": {"uid": "u"}, "spec": {"replicas": 1}}
    assert signature({**pool, "status": {"granted": 1}}) == signature({**pool, "status": {"granted": 2}})
    assert signature({**pool, "spec": {"replicas": 2}}) != signature(pool)
