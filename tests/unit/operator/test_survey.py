"""Looks at shards: two of them make a sample, and many shards cost no more than few."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from katsura.api.attention.v1 import attention_service_pb2 as pb
from katsura.api.attention.v1.attention_service_pb2_grpc import (
    AttentionServiceServicer,
    add_AttentionServiceServicer_to_server,
)
from katsura.api.experts.v1 import experts_service_pb2 as experts
from katsura.api.experts.v1.experts_service_pb2_grpc import (
    ExpertServiceServicer,
    add_ExpertServiceServicer_to_server,
)
from katsura.domain.errors import KatsuraError, UnavailableError
from katsura.rpc.renewal import TlsFiles
from katsura.rpc.serve import ServeConfig, Server
from katsura_operator.authority import issue, make_authority
from katsura_operator.core.pace import Count
from katsura_operator.survey import GrpcAsker, Survey


class Shards:
    """Each look finds a hundred steps more, of two sequences and 10 ms each."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.away: set[str] = set()
        self.lives: dict[str, int] = {}
        self.prints: dict[str, str] = {}

    async def fingerprint(self, host: str) -> str:
        self.asked.append(host)
        if host in self.away:
            raise UnavailableError("away")
        return self.prints[host]

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
    assert survey.note([pod(1), pod(2, role="router")]) == ()
    await survey.look()
    assert survey.note([pod(1)]) == ()
    await survey.look()
    (sample,) = survey.note([pod(1)])
    assert (sample.deployment, sample.node, sample.step_s) == ("n/chat", "node", 0.01)
    assert (sample.batch, sample.context) == (2.0, 300.0)
    assert set(shards.asked) == {"10.0.0.1"}
    shards.lives["10.0.0.1"] = 2
    await survey.look()
    assert survey.note([pod(1)]) == (), "another life"
    await survey.look()
    assert len(survey.note([pod(1)])) == 2, "what is known of it, with something new"


def member(number: int) -> dict[str, Any]:
    made = pod(number, role="experts")
    made["metadata"]["labels"]["katsura.dev/pool"] = "chat-experts"
    return made


async def test_a_member_is_asked_once_for_its_bits_and_the_odd_ones_of_a_pool_are_known() -> None:
    shards = Shards()
    shards.prints = {"10.0.0.1": "aa", "10.0.0.2": "bb", "10.0.0.3": "bb"}
    survey = Survey(shards, 60.0)
    survey.note([member(n) for n in (1, 2, 3)])
    assert survey.odd() == ()
    shards.away = {"10.0.0.1"}
    await survey.look()
    assert survey.odd() == ()
    shards.away = set()
    await survey.look()
    await survey.look()
    assert survey.odd() == ("u0001",)
    assert sorted(shards.asked) == ["10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.3"]
    survey.note([member(2), member(3)])
    assert survey.odd() == ()


async def test_samples_are_bounded_and_go_with_their_shards() -> None:
    shards = Shards()
    survey = Survey(shards, 60.0)
    survey.note([pod(1), pod(2, "other")])
    for _ in range(40):
        await survey.look()
    assert len(survey.note([pod(1), pod(2, "other")])) == 2 * 30
    assert survey.note([pod(1), pod(2, "other")]) == (), "nothing new"
    await survey.look()
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


class Told(AttentionServiceServicer):
    """A shard that has decoded."""

    async def GetShard(self, request: Any, context: Any) -> Any:
        decoded = pb.DecodeCount(steps=7, seconds=0.5, sequences=14, context_tokens=700)
        return pb.GetShardResponse(shard=pb.Shard(incarnation=3, decoded=decoded))


class Known(ExpertServiceServicer):
    """A member of which the bits are known."""

    async def GetMember(self, request: Any, context: Any) -> Any:
        return experts.GetMemberResponse(member=experts.Member(fingerprint=b"\xab\x01"))


async def test_pods_are_asked_by_the_mutual_tls_that_they_use_among_themselves(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    authority = make_authority(now)
    leaf = issue(authority, now)
    for name, pem in (("tls.crt", leaf.certificate), ("tls.key", leaf.key), ("ca.crt", authority.certificate)):
        (tmp_path / name).write_bytes(pem)
    tls = TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt")
    server = Server(ServeConfig("attention", "p", "127.0.0.1:0", "token", tls=tls))
    add_AttentionServiceServicer_to_server(Told(), server.grpc)
    add_ExpertServiceServicer_to_server(Known(), server.grpc)
    await server.start()
    try:
        host, _, port = server.address.rpartition(":")
        asker = GrpcAsker("token", tmp_path, int(port))
        assert await asker.count(host) == Count(3, 7, 0.5, 14, 700)
        assert await asker.fingerprint(host) == "ab01"
    finally:
        server.stop()
        await server.run()
    with pytest.raises(KatsuraError):
        await asker.count(host)
