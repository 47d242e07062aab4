"""Mutual TLS between our processes, and the one door without it: a kubelet's probes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from katsura.rpc.channel import TLS_NAME, open_channel
from katsura.rpc.renewal import TlsFiles
from katsura.rpc.serve import ServeConfig, Server

TIMEOUT_S = 30.0


def issue(folder: Path, authority: trustme.CA, name: str = TLS_NAME) -> TlsFiles:
    folder.mkdir(exist_ok=True)
    files = TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")
    made = authority.issue_cert(name)
    for path, pem in (
        (files.certificate, made.cert_chain_pems[0]),
        (files.key, made.private_key_pem),
        (files.authority, authority.cert_pem),
    ):
        path.with_suffix(".new").write_bytes(pem.bytes())
        path.with_suffix(".new").rename(path)
    return files


@pytest.fixture
def ours(tmp_path: Path) -> TlsFiles:
    return issue(tmp_path / "ours", trustme.CA())


@pytest.fixture
async def server(ours: TlsFiles) -> AsyncIterator[Server]:
    server = Server(ServeConfig("memory", "m1", "127.0.0.1:0", "token", health_listen="127.0.0.1:0", tls=ours))
    await server.start()
    yield server
    server.stop()
    await server.run()


async def check(channel: grpc.aio.Channel) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    return int(answer.status)


async def test_a_peer_with_a_certificate_of_the_installation_is_served_at_any_address(
    server: Server, ours: TlsFiles
) -> None:
    async with open_channel(server.address, ours) as channel:
        assert await check(channel) == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_peer_of_another_authority_is_refused(server: Server, ours: TlsFiles, tmp_path: Path) -> None:
    theirs = issue(tmp_path / "theirs", trustme.CA())
    intruder = TlsFiles(theirs.certificate, theirs.key, ours.authority)
    async with open_channel(server.address, intruder) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await check(channel)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_peer_without_a_certificate_is_refused(server: Server) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await check(channel)


async def test_probes_need_no_certificate_and_see_readiness_change(server: Server) -> None:
    async with grpc.aio.insecure_channel(server.health_address) as channel:
        assert await check(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
        stub = health_pb2_grpc.HealthStub(channel)
        watched = stub.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert (await watched.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        server.set_ready(True)
        assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
        watched.cancel()


async def test_the_probes_door_has_no_service_of_ours(server: Server) -> None:
    async with grpc.aio.insecure_channel(server.health_address) as channel:
        call = channel.unary_unary("/katsura.api.memory.v1.MemoryService/GetTree")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"", timeout=TIMEOUT_S)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_server_shows_a_renewed_certificate_without_a_restart(server: Server, ours: TlsFiles) -> None:
    newer = trustme.CA()
    issue(ours.certificate.parent, newer)
    async with open_channel(server.address, ours) as channel:
        assert await check(channel) == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_server_refuses_what_the_renewed_authority_did_not_sign(
    server: Server, ours: TlsFiles, tmp_path: Path
) -> None:
    kept = TlsFiles(*(tmp_path / name for name in ("old.crt", "old.key", "old-ca.crt")))
    for old, path in ((ours.certificate, kept.certificate), (ours.key, kept.key)):
        path.write_bytes(old.read_bytes())
    issue(ours.certificate.parent, trustme.CA())
    kept.authority.write_bytes(ours.authority.read_bytes())
    async with open_channel(server.address, kept) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await check(channel)


async def test_a_channel_goes_on_over_a_renewal_and_running_calls_end_where_they_began(
    server: Server, ours: TlsFiles
) -> None:
    async with open_channel(server.address, ours) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watched = stub.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert (await watched.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        issue(ours.certificate.parent, trustme.CA())
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        server.set_ready(True)
        assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
    assert watched.done(), "closing the channel closes those that it has outlived"


async def test_a_channel_made_before_a_renewal_reaches_a_server_that_started_after_it(ours: TlsFiles) -> None:
    first = Server(ServeConfig("memory", "m1", "127.0.0.1:0", "token", tls=ours))
    await first.start()
    channel = open_channel(first.address, ours)
    assert await check(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
    first.stop()
    await first.run()
    issue(ours.certificate.parent, trustme.CA())
    second = Server(ServeConfig("memory", "m2", first.address, "token", tls=ours))
    await second.start()
    assert await check(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
    await channel.close()
    second.stop()
    await second.run()


async def test_a_renewal_that_is_half_written_keeps_what_was_held(server: Server, ours: TlsFiles) -> None:
    async with open_channel(server.address, ours) as channel:
        ours.key.rename(ours.key.with_suffix(".away"))
        assert await check(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
        ours.key.with_suffix(".away").rename(ours.key)
        assert await check(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
