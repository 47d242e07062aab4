"""Telling pods to finish, over the mutual TLS of an authority of ours."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from katsura.api.attention.v1 import attention_service_pb2 as attention_pb
from katsura.api.attention.v1.attention_service_pb2_grpc import (
    AttentionServiceServicer,
    add_AttentionServiceServicer_to_server,
)
from katsura.api.experts.v1 import experts_service_pb2 as experts_pb
from katsura.api.experts.v1.experts_service_pb2_grpc import ExpertServiceServicer, add_ExpertServiceServicer_to_server
from katsura.rpc.renewal import TlsFiles
from katsura.rpc.serve import ServeConfig, Server
from katsura_operator.authority import issue, make_authority
from katsura_operator.drain import GrpcDrainer

TOKEN = "token"  # of a test


class Pod(ExpertServiceServicer, AttentionServiceServicer):
    """Finishes its work when it is let go."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []
        self.heard, self.finish = asyncio.Event(), asyncio.Event()

    async def Drain(self, request: Any, context: Any) -> Any:
        expert = isinstance(request, experts_pb.DrainRequest)
        self.told.append(("experts" if expert else "attention", request.timeout_ms))
        self.heard.set()
        await self.finish.wait()
        return experts_pb.DrainResponse() if expert else attention_pb.DrainResponse()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    now = datetime.now(UTC)
    authority = make_authority(now)
    leaf = issue(authority, now)
    for name, pem in (("tls.crt", leaf.certificate), ("tls.key", leaf.key), ("ca.crt", authority.certificate)):
        (tmp_path / name).write_bytes(pem)
    return tmp_path


async def serve(folder: Path, role: str) -> AsyncIterator[tuple[Pod, str]]:
    tls = TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")
    server, pod = Server(ServeConfig(role, "p", "127.0.0.1:0", TOKEN, tls=tls)), Pod()
    add = add_ExpertServiceServicer_to_server if role == "experts" else add_AttentionServiceServicer_to_server
    add(pod, server.grpc)
    await server.start()
    try:
        yield pod, server.address
    finally:
        pod.finish.set()
        server.stop()
        await server.run()


@pytest.fixture(params=["experts", "attention"])
async def pod(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[tuple[Pod, str, str]]:
    async for made, address in serve(folder, request.param):
        yield made, address, request.param


async def test_a_pod_is_told_once_and_nobody_waits_for_it(pod: tuple[Pod, str, str], folder: Path) -> None:
    made, address, role = pod
    drainer = GrpcDrainer(TOKEN, folder)
    await drainer.drain(role, address)
    await drainer.drain(role, address)
    async with asyncio.timeout(60):
        await made.heard.wait()
    assert made.told == [(role, 3_600_000)]
    (asked,) = drainer._asked.values()
    made.finish.set()
    async with asyncio.timeout(60):
        await asked
    assert drainer._asked == {}, "an address may belong to another pod next time"
    await drainer.close()


async def test_without_the_token_sigterm_alone_drains(pod: tuple[Pod, str, str], folder: Path) -> None:
    made, address, role = pod
    drainer = GrpcDrainer("", folder)
    await drainer.drain(role, address)
    assert drainer._asked == {}
    await drainer.close()
    assert made.told == []


async def test_a_pod_that_is_gone_is_logged_and_stops_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    drainer = GrpcDrainer(TOKEN, folder)
    with socket.socket() as deaf:  # bound, and nobody listens
        deaf.bind(("127.0.0.1", 0))
        await drainer.drain("experts", f"127.0.0.1:{deaf.getsockname()[1]}")
        async with asyncio.timeout(120):
            await asyncio.gather(*drainer._asked.values())
    assert "not drained by word" in caplog.text


async def test_closing_ends_what_is_under_way(pod: tuple[Pod, str, str], folder: Path) -> None:
    made, address, role = pod
    drainer = GrpcDrainer(TOKEN, folder)
    await drainer.drain(role, address)
    async with asyncio.timeout(60):
        await made.heard.wait()
    await drainer.close()
    assert all(task.done() for task in drainer._asked.values())
