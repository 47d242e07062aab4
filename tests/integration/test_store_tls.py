"""The bundled store as pods reach it: mutual TLS, an account without administration, certificates renewed in place."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from katsura.domain.errors import FailedPreconditionError, InternalError, UnavailableError
from katsura.domain.ids import TenantId
from katsura.domain.trees import Durability
from katsura.rpc.channel import TLS_NAME
from katsura.rpc.clock import SystemClock
from katsura.state.connect import Store, translated
from katsura.state.hints_redis import LIBRARY as HINT_FUNCTIONS
from katsura.state.tenants import RedisTenantStore
from katsura.state.trees_redis import MEMORY_FUNCTIONS

LIMIT_S = 60.0
RIGHTS = Path(__file__).resolve().parents[2] / "charts" / "katsura" / "files" / "store-rights.txt"


def issue(folder: Path, authority: trustme.CA) -> Path:
    """What pods mount, as a kubelet replaces it: file by file in one step each."""
    folder.mkdir(exist_ok=True)
    made = authority.issue_cert(TLS_NAME)
    contents = {
        "tls.crt": made.cert_chain_pems[0].bytes(),
        "tls.key": made.private_key_pem.bytes(),
        "ca.crt": authority.cert_pem.bytes(),
    }
    for name, content in contents.items():
        (folder / f"{name}.new").write_bytes(content)
        (folder / f"{name}.new").rename(folder / name)
    return folder


class DoorProcess:
    """The door and its server, as the chart's pod runs them."""

    def __init__(self, folder: Path) -> None:
        self.tls = issue(folder / "tls", trustme.CA())
        conf = folder / "valkey.conf"
        conf.write_text(f"user default off\nuser katsura on >secret {RIGHTS.read_text()}")
        data = folder / "data"
        data.mkdir()
        line = [sys.executable, "-m", "katsura.cli.door", "--listen", "127.0.0.1:0", "--tls", str(self.tls)]
        line += ["--", str(conf), "--dir", str(data), "--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        env = {**os.environ, "KATSURA_LOG_FORMAT": "json"}
        self.process = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=env)
        assert self.process.stderr is not None
        said = ""
        for raw in self.process.stderr:
            said += raw.decode()
            line_said = json.loads(raw) if raw.startswith(b"{") else {}
            if line_said.get("message") == "open":
                self.port = int(line_said["address"].rpartition(":")[2])
                return
        self.close()
        raise AssertionError(said)

    def url(self, tls: Path | None = None, user: str = "katsura:secret@") -> str:
        folder = tls or self.tls
        files = f"ssl_ca_certs={folder}/ca.crt&ssl_certfile={folder}/tls.crt&ssl_keyfile={folder}/tls.key"
        return f"rediss://{user}127.0.0.1:{self.port}/0?{files}&ssl_check_hostname=false"

    def close(self) -> None:
        with self.process:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(LIMIT_S)
            finally:
                self.process.kill()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[DoorProcess]:
    running = DoorProcess(tmp_path)
    try:
        yield running
    finally:
        running.close()


async def test_services_find_a_strict_store_with_their_functions_and_keys(door: DoorProcess) -> None:
    store = await Store.open(door.url(), libraries=(MEMORY_FUNCTIONS, HINT_FUNCTIONS))
    assert store.durability is Durability.STRICT
    made = await RedisTenantStore(store, SystemClock()).create_key(TenantId("t"))
    tenant = await RedisTenantStore(store, SystemClock()).resolve(made.secret)
    assert tenant is not None
    assert tenant.tenant_id == "t"
    assert await store.command("CLIENT", "UNBLOCK", "0") == 0  # how a watch is added to the read that is under way
    await store.close()


async def test_who_has_no_certificate_or_a_stranger_s_is_refused(door: DoorProcess, tmp_path: Path) -> None:
    stranger = issue(tmp_path / "stranger", trustme.CA())
    (stranger / "ca.crt").write_bytes((door.tls / "ca.crt").read_bytes())
    bare = f"rediss://katsura:secret@127.0.0.1:{door.port}/0?ssl_ca_certs={door.tls}/ca.crt&ssl_check_hostname=false"
    for url in (door.url(stranger), bare, f"redis://katsura:secret@127.0.0.1:{door.port}/0"):
        with pytest.raises(UnavailableError):
            await Store.open(url, wait_s=0.0)
    await (await Store.open(door.url())).close()  # which harmed nobody


async def test_a_certificate_without_the_password_is_refused(door: DoorProcess) -> None:
    for user in ("", "katsura:wrong@", ":secret@"):
        with pytest.raises((FailedPreconditionError, InternalError)):
            await Store.open(door.url(user=user), wait_s=0.0)
    await (await Store.open(door.url())).close()


async def test_the_account_of_services_cannot_administrate(door: DoorProcess) -> None:
    store = await Store.open(door.url())
    for command in (
        "FLUSHALL",
        "KEYS *",
        "CONFIG SET dir /",
        "ACL LIST",
        "SHUTDOWN",
        "FUNCTION FLUSH",
        "MODULE LIST",
    ):
        with pytest.raises(FailedPreconditionError, match="no permissions"), translated(store.url):
            await store.client.execute_command(*command.split())  # type: ignore[no-untyped-call]
    await store.close()


async def test_a_renewed_certificate_serves_old_and_new_connections(door: DoorProcess) -> None:
    store = await Store.open(door.url(), max_connections=1)
    await store.client.set("k", "v")
    issue(door.tls, trustme.CA())
    assert await store.client.get("k") == b"v"  # by the connection that there is
    await store.client.connection_pool.disconnect()
    assert await store.client.get("k") == b"v"  # the same connection, made anew
    await store.close()


async def test_many_connections_at_once_share_what_they_read(
    door: DoorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    original = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda: made.append(1) or original())
    store = await Store.open(door.url())
    await asyncio.gather(*(store.client.set(f"k{i}", "v") for i in range(16)))
    assert made == [1]
    await store.close()


async def test_what_is_sent_arrives_however_large_it_is(door: DoorProcess) -> None:
    store = await Store.open(door.url())
    value = os.urandom(1 << 20) * 8
    await asyncio.gather(*(store.client.set(f"k{i}", value) for i in range(4)))
    assert all(each == value for each in await asyncio.gather(*(store.client.get(f"k{i}") for i in range(4))))
    await store.close()


def test_the_door_ends_with_its_server(door: DoorProcess) -> None:
    (server,) = Path(f"/proc/{door.process.pid}/task/{door.process.pid}/children").read_text().split()
    os.kill(int(server), signal.SIGKILL)
    assert door.process.wait(LIMIT_S) != 0
