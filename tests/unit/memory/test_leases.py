"""Leases on branches, over the in-memory store."""

from __future__ import annotations

import pytest

from katsura.domain.errors import ConflictError, InvalidArgumentError, Reason
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import Resolution, Step, TreePolicy, Wait, WaitKind
from katsura.memory.core.merge import ConflictPolicy
from katsura.memory.core.slots import SlotWrite
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.state.trees import TreeRef
from katsura.state.trees_twin import TwinTreeStore
from katsura.testing.tree_suite import LIMITS

REF = TreeRef(TenantId("acme"), TreeId("t"))


async def leased() -> tuple[Memory, int]:
    memory = Memory(TwinTreeStore(LIMITS), lambda: "unused", 1.0)
    await memory.create_tree(REF.tenant, "", REF.tree, "", (), TreePolicy(), {})
    await memory.grow(write(0), [Step("a"), Step("may I", wait=Wait(WaitKind.APPROVAL, "the boss"))], True)
    await memory.fork(REF, "", "main", 0, "other")
    await memory.grow(Write("", REF, "other", None, True), [Step("found")], True)
    return memory, (await memory.acquire_lease(REF, "", "one", 3600)).lease_token


def write(token: int) -> Write:
    return Write("", REF, "", None, True, token)


async def test_every_write_that_changes_the_path_needs_the_token() -> None:
    memory, token = await leased()
    for lease, reason in ((0, Reason.LEASE_HELD), (token + 9, Reason.LEASE_LOST)):
        for refused in (
            memory.grow(write(lease), [Step("b")], True),
            memory.resume_step(write(lease), 2, Resolution.DONE, None),
            memory.set_slots(REF, "", "", (SlotWrite("k", "v"),), lease),
            memory.merge(write(lease), "other", (), "", ConflictPolicy.FAIL),
            memory.revise(write(lease), 1, "no", "", True),
        ):
            with pytest.raises(ConflictError) as caught:
                await refused
            assert (caught.value.reason, caught.value.metadata["holder"]) == (reason, "one")
    await memory.resume_step(write(token), 2, Resolution.DONE, None)
    await memory.set_slots(REF, "", "", (SlotWrite("k", "v"),), token)
    await memory.merge(write(token), "other", (), "", ConflictPolicy.FAIL)
    assert (await memory.revise(write(token), 1, "no", "", True)).branch.lease_holder == "one"


async def test_a_lease_is_of_somebody_and_for_a_while() -> None:
    memory, token = await leased()
    for wrong in (
        memory.acquire_lease(REF, "", "", 0),
        memory.acquire_lease(REF, "", "x" * 257, 0),
        memory.acquire_lease(REF, "", "one", 86401),
        memory.renew_lease(REF, "", 0, 0),
        memory.release_lease(REF, "", 0),
        memory.grow(write(-1), [Step("b")], True),
    ):
        with pytest.raises(InvalidArgumentError):
            await wrong
    assert (await memory.renew_lease(REF, "", token, 0)).lease_end_ms > 60_000
    assert (await memory.release_lease(REF, "", token)).lease_holder == ""
