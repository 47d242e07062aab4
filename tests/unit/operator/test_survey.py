"""Looks at shards: two of them make a sample, and many shards cost no more than few."""

from __future__ import annotations

from typing import Any

from katsura.domain.errors import UnavailableError
from katsura_operator.core.pace import Count
from katsura_operator.survey import Survey


class Shards:
    """Each look finds a hundred steps more, of two sequences and 10 ms each."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.away: set[str] = set()
        self.lives: dict[str, int] = {}

    async def count(self, host: str) -> Count:
        self.asked.append(host)
        if host in self.away:
            raise UnavailableError("away")
        steps = 100 * self.asked.count(host)
        return Count(self.lives.get(host, 1), steps, steps / 100, 2 * steps, 600 * steps)


def pod(number: int, deployment: str = "chat", role: str = "unified") -> dict[str, Any]:
    labels = {"katsura.dev/role": role, "katsura.dev/deployment": deployment, "katsura.dev/revision": "r"}
    status = {"podIP": f"10.0.0.{number}", "conditions": [{"type": "Ready", "status": "True"}]}
    metadata = {"name": f"p{number}", "namespace": "n", "uid": f"u{number:04}", "labels": labels}
    return {"kind": "Pod", "metadata": metadata, "spec": {"nodeName": "node"}, "status": status}


async def test_two_looks_at_one_life_make_a_sample() -> None:
    shards = Shards()
    survey = Survey(shards, 60.0)
    assert survey.note([pod(1), pod(2, role="experts")]) == ()
    await survey.look()
    assert survey.note([pod(1)]) == ()
    await survey.look()
    (sample,) = survey.note([pod(1)])
    assert (sample.deployment, sample.node, sample.step_s) == ("n/chat", "node", 0.01)
    assert (sample.batch, sample.context) == (2.0, 300.0)
    assert set(shards.asked) == {"10.0.0.1"}
    shards.lives["10.0.0.1"] = 2
    await survey.look()
    assert len(survey.note([pod(1)])) == 1, "another life"


async def test_samples_are_bounded_and_go_with_their_shards() -> None:
    shards = Shards()
    survey = Survey(shards, 60.0)
    survey.note([pod(1), pod(2, "other")])
    for _ in range(40):
        await survey.look()
    assert len(survey.note([pod(1), pod(2, "other")])) == 2 * 30
    assert {s.deployment for s in survey.note([pod(2, "other")])} == {"n/other"}
    assert survey._last.keys() == {"u0002"}


async def test_many_shards_are_asked_in_turn_and_one_that_is_away_holds_nobody_up() -> None:
    shards = Shards()
    survey = Survey(shards, 60.0)
    survey.note([pod(n) for n in range(100)])
    shards.away = {"10.0.0.3"}
    await survey.look()
    assert len(shards.asked) == 64
    await survey.look()
    assert len(set(shards.asked)) == 100
    assert "u0003" not in survey._last


async def test_nobody_is_asked_where_nobody_leads() -> None:
    shards = Shards()
    survey = Survey(shards, 60.0)
    await survey.look()
    survey.note([pod(1, role="memory")])
    await survey.look()
    assert shards.asked == []
