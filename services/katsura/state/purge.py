"""Deleting everything that a memory store keeps, and nothing that others keep on the same server.

A key belongs to the store by its name (`keys.is_of_store`). Keys go in bounded batches, an object before the key that
names it, so that a purge may be killed anywhere: the next one finds what is left.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, cast

from katsura.domain.errors import ConflictError, DataLossError, FailedPreconditionError, InternalError, Reason
from katsura.domain.trees import Durability
from katsura.state import keys
from katsura.state.connect import Store, shown, translated
from katsura.state.objects import ObjectStore

BATCH_KEYS: Final = 500
"""Keys that one request looks at, and at most deletes."""
_ROUNDS_MAX: Final = 5
_BARRIER_MS: Final = 5000


async def purge(
    store: Store,
    objects: ObjectStore | None = None,
    *,
    batch: int = BATCH_KEYS,
    told: Callable[[int], None] = lambda deleted: None,
) -> int:
    """Delete all keys of the memory store, and the objects of its cold trees; how many keys there were.

    Args:
        store: the server's database that the trees are in.
        objects: where cold trees are; None where the store has no archive.
        batch: keys that one request looks at.
        told: called after each batch with the keys deleted so far.

    Raises:
        FailedPreconditionError: COLD_UNAVAILABLE, trees are cold and there is no place to find them in.
        ConflictError: keys come back, so somebody still writes.
        UnavailableError: STORE_UNAVAILABLE; call again, it goes on where it was.
    """
    deleted = 0
    for _ in range(_ROUNDS_MAX):
        before = deleted
        async for names in _batches(store, batch):
            await _delete_objects(store, objects, names)
            deleted += await _unlink(store, names)
            told(deleted)
        if deleted == before:
            await _synced(store)
            return deleted
    raise ConflictError(
        f"trees come back as fast as they are deleted from {shown(store.url)}: a memory process still serves there; "
        "end it first"
    )


async def _batches(store: Store, count: int) -> AsyncIterator[list[bytes]]:
    """All keys of the memory store that are there from now on until the end, by the requests that found them."""
    cursor, more = 0, True
    while more:
        with translated(store.url):
            cursor, found = await store.client.scan(cursor, match="katsura:*", count=count)
        more = cursor != 0
        yield [name for name in cast(list[bytes], found) if keys.is_of_store(name)]


async def _delete_objects(store: Store, objects: ObjectStore | None, names: list[bytes]) -> None:
    cold = [name for name in names if name.endswith(b"}:cold")]
    with translated(store.url):
        records = await store.client.mget(cold) if cold else []
    for record in records:
        if record is None:  # brought back or dropped meanwhile
            continue
        if objects is None:
            raise FailedPreconditionError(
                f"cold trees of {shown(store.url)} lie in an archive; name its volume in spec.archive, as it was",
                reason=Reason.COLD_UNAVAILABLE,
            )
        try:
            await objects.delete(json.loads(record)["object"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataLossError("a cold tree does not say which object it is in") from error


async def _unlink(store: Store, names: list[bytes]) -> int:
    if not names:
        return 0
    pipeline = store.client.pipeline(transaction=False)
    for name in names:  # one by one: a cluster takes no command over keys of several trees
        pipeline.unlink(name)
    with translated(store.url):
        answers: list[Any] = await pipeline.execute()
    return sum(answers)


async def _synced(store: Store) -> None:
    """Wait for the disk where it is synced each second: what is told to be gone does not come back."""
    if store.durability is not Durability.RELAXED:
        return
    pipeline = store.client.pipeline(transaction=False)
    pipeline.set(keys.BARRIER, "")
    pipeline.execute_command("WAITAOF", 1, 0, _BARRIER_MS)
    try:
        with translated(store.url):
            await pipeline.execute()
    except InternalError:
        return  # a server without WAITAOF has it on disk within a second
