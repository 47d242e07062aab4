"""Connection to a real server: what it promises, and what it says when the server is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import uvloop

from katsura.domain.errors import FailedPreconditionError, InternalError, InvalidArgumentError, Reason, UnavailableError
from katsura.domain.trees import Durability
from katsura.state.connect import Library, Store, shown, translated
from katsura.testing.store import EmbeddedStore

ECHO = Library("katsura_echo_1", "#!lua name=katsura_echo_1\n" + "redis.register_function('katsura_echo_1_say', "
               "function(keys, args) return {redis.call('INCR', keys[1]), args[1]} end)")  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedStore]:
    with EmbeddedStore("always") as server:
        yield server


async def test_the_incarnation_survives_a_restart_and_goes_with_the_data(server: EmbeddedStore) -> None:
    store = await Store.open(server.url)
    before = store.incarnation
    await asyncio.to_thread(server.restart)
    await store.refresh()
    assert store.incarnation == before
    with translated(store.url):
        await store.client.flushall()
    await store.refresh()
    assert store.incarnation != before
    await store.close()


async def test_a_function_is_loaded_again_when_the_server_forgot_it(server: EmbeddedStore) -> None:
    store = await Store.open(server.url, libraries=[ECHO])
    assert await store.call(ECHO, "say", [b"k1"], ["a"]) == [1, b"a"]
    with translated(store.url):
        await store.client.function_flush()
    assert await store.call(ECHO, "say", [b"k1"], ["b"]) == [2, b"b"]
    await store.close()


async def test_loading_a_library_twice_changes_nothing(server: EmbeddedStore) -> None:
    store = await Store.open(server.url, libraries=[ECHO, ECHO])
    await store.close()


async def test_a_connection_that_died_while_idle_is_replaced_before_it_is_used(server: EmbeddedStore) -> None:
    store = await Store.open(server.url, libraries=[ECHO])
    await asyncio.to_thread(server.restart)
    assert await store.call(ECHO, "say", [b"k2"], ["a"]) == [1, b"a"]
    await store.close()


@pytest.mark.parametrize(
    ("appendfsync", "settings", "promise"),
    [
        ("always", {}, Durability.STRICT),
        ("everysec", {}, Durability.RELAXED),
        ("no", {}, Durability.CACHE),
        ("always", {"no-appendfsync-on-rewrite": "yes"}, Durability.CACHE),
        ("always", {"appendonly": "no"}, Durability.CACHE),
        ("always", {"maxmemory": "64mb", "maxmemory-policy": "allkeys-lru"}, Durability.CACHE),
        ("always", {"maxmemory": "64mb"}, Durability.STRICT),
    ],
)
async def test_durability_is_what_the_servers_settings_promise(
    appendfsync: str, settings: dict[str, str], promise: Durability
) -> None:
    with EmbeddedStore(appendfsync, settings) as server:
        store = await Store.open(server.url)
        assert store.durability is promise
        await store.close()


async def test_what_the_server_does_not_let_us_see_is_not_promised(server: EmbeddedStore) -> None:
    admin = await Store.open(server.url)
    await admin.client.execute_command(  # type: ignore[no-untyped-call]
        "ACL", "SETUSER", "ours", "on", ">secret", "~*", "+@all", "-config"
    )
    store = await Store.open(f"unix://ours:secret@{server.socket_path}")
    assert store.durability is Durability.CACHE
    await store.close()
    await admin.close()


async def test_replicas_promise_nothing_where_keys_may_be_evicted() -> None:
    with EmbeddedStore("always", {"maxmemory": "64mb", "maxmemory-policy": "allkeys-lru"}) as server:
        store = await Store.open(server.url, replicas=1)
        assert store.durability is Durability.CACHE
        await store.close()


async def test_where_settings_cannot_be_seen_eviction_still_is() -> None:
    with EmbeddedStore("always", {"maxmemory": "64mb", "maxmemory-policy": "allkeys-lru"}) as server:
        admin = await Store.open(server.url)
        rights = ("ACL", "SETUSER", "ours", "on", ">secret", "~*", "+@all", "-config")
        await admin.client.execute_command(*rights)  # type: ignore[no-untyped-call]
        store = await Store.open(f"unix://ours:secret@{server.socket_path}", replicas=1)
        assert store.durability is Durability.CACHE
        await store.close()
        await admin.close()


async def test_a_server_that_promises_less_than_is_required_is_refused_until_it_is_mended() -> None:
    with EmbeddedStore("everysec") as server:
        store = await Store.open(server.url)
        store.require(Durability.RELAXED)
        with pytest.raises(FailedPreconditionError, match="appendfsync is everysec, set always") as caught:
            store.require(Durability.STRICT)
        assert caught.value.reason is Reason.DURABILITY_UNAVAILABLE
        await store.client.config_set("appendfsync", "always")
        await store.refresh()
        store.require(Durability.STRICT)
        assert store.promised is Durability.STRICT
        await store.close()


async def test_no_more_is_promised_than_was_required(server: EmbeddedStore) -> None:
    store = await Store.open(server.url)
    assert store.promised is Durability.STRICT
    store.require(Durability.RELAXED)
    assert (store.promised, store.durability) == (Durability.RELAXED, Durability.STRICT)
    await store.close()


async def test_a_store_that_is_down_is_waited_for_with_a_message() -> None:
    server = EmbeddedStore()
    said: list[str] = []

    def report(message: str) -> None:
        said.append(message)
        server.start()

    opening = Store.open(server.url, report=report)
    try:
        store = await opening
        await store.close()
    finally:
        server.close()
    assert "waiting for the store" in said[0]
    assert server.url in said[0]


async def test_a_store_that_stays_down_is_unavailable_with_a_reason() -> None:
    with pytest.raises(UnavailableError, match="start it, or set KATSURA_STORE_URL") as caught:
        await Store.open("unix:///nowhere/at/all", wait_s=0)
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    assert caught.value.retry_after_s


def test_a_connection_that_closes_under_a_write_is_a_store_that_is_away(server: EmbeddedStore) -> None:
    """uvloop, which our processes run on, says so by an error of another kind."""

    async def write() -> None:
        store = await Store.open(server.url)
        connection = await store.client.connection_pool.get_connection()
        connection._writer.transport.close()
        with pytest.raises(UnavailableError, match="closed the connection"), translated(server.url):
            await connection.send_command("PING")
        await connection.disconnect()
        await store.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(write())


def test_other_errors_pass(server: EmbeddedStore) -> None:
    with pytest.raises(RuntimeError, match="of ours"), translated(server.url):
        raise RuntimeError("a fault of ours")


async def test_a_url_of_another_kind_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="not a store URL"):
        await Store.open("http://127.0.0.1")


async def test_a_write_that_too_few_replicas_confirm_is_not_acknowledged(server: EmbeddedStore) -> None:
    store = await Store.open(server.url, libraries=[ECHO], replicas=1)
    with pytest.raises(UnavailableError, match="0 of 1 replicas"):
        await store.call(ECHO, "say", [b"k3"], ["a"])
    await store.close()


async def test_a_bug_in_a_function_is_an_internal_error(server: EmbeddedStore) -> None:
    store = await Store.open(server.url, libraries=[ECHO])
    with pytest.raises(InternalError):
        await store.call(ECHO, "say", [], [])
    await store.close()


def test_a_password_is_never_shown() -> None:
    assert shown("redis://user:secret@host:1/0") == "redis://user:***@host:1/0"
