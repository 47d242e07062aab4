"""Quotas, over the in-memory store and a clock that is turned by hand."""

from __future__ import annotations

from functools import partial

import pytest

from katsura.api.memory.v1.memory_contents_pb2 import PutAttachmentsRequest
from katsura.api.memory.v1.memory_merge_pb2 import MergeRequest
from katsura.api.memory.v1.memory_pb2 import Attachment, Step
from katsura.api.memory.v1.memory_service_pb2 import GrowRequest
from katsura.api.memory.v1.memory_slots_pb2 import SetSlotsRequest, SlotWrite
from katsura.domain.blocks import BlockOwner, BlockScope, Content
from katsura.domain.errors import NotFoundError, Reason, ResourceExhaustedError
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import TreePolicy
from katsura.domain.usage import Quotas, Usage
from katsura.memory.quotas import Meter
from katsura.memory.service import Memory
from katsura.state.blocks_twin import TwinBlockStore
from katsura.state.trees import Limits, NewTree, TreeRef
from katsura.state.trees_twin import TwinTreeStore
from katsura.state.twin_usage import TwinUsageStore
from katsura.state.usage import Settled, UsageStore
from katsura.testing.tree_suite import NO_REQUEST, grow, new_ref

ACME = TenantId("acme")


class HandClock:
    def __init__(self) -> None:
        self.s = 1000.0

    def wall_ms(self) -> int:
        return int(self.s * 1000)

    def monotonic_s(self) -> float:
        return self.s


class House:
    def __init__(self, quotas: Quotas) -> None:
        self.trees, self.clock = TwinTreeStore(Limits()), HandClock()
        self.blocks = TwinBlockStore(4, lambda tenant, added: self.meter.count(tenant, added))
        self.sums = TwinUsageStore(self.trees, self.blocks)
        self.meter = Meter(self.sums, quotas, self.clock)

    async def refused(self, method: str, request: object = None) -> ResourceExhaustedError:
        with pytest.raises(ResourceExhaustedError) as caught:
            await self.meter.admit(method, ACME, request)
        assert caught.value.reason is Reason.QUOTA_EXCEEDED
        return caught.value


async def test_without_quotas_everything_is_admitted_and_counted() -> None:
    house = House(Quotas())
    for _ in range(100):
        await house.meter.admit("Grow", ACME)
    house.meter.count(ACME, Usage(1, 2, 3))
    settled, quotas, counted = await house.meter.usage(ACME, recount=False)
    assert (settled.usage, settled.requests, quotas, counted) == (Usage(1, 2, 3), 100, Quotas(), None)


async def test_a_quota_names_itself_what_is_used_and_its_limit() -> None:
    house = House(Quotas(nodes=2))
    ref = new_ref()
    ref = type(ref)(ACME, ref.tree)
    await house.trees.create(ref, NewTree("", (), TreePolicy(), {}), NO_REQUEST)
    await house.meter.admit("Grow", ACME)
    await grow(house.trees, ref, "a", "b")
    house.meter.count(ACME, Usage(1, 2, 90))
    error = await house.refused("Grow")
    assert error.metadata == {"quota": "nodes", "used": "2", "limit": "2", "adds": "1"}
    assert "quota nodes: 2 of 2 are used" in error.message
    for method in ("Compress", "Revise", "Redact", "DeleteTree", "GetPath", "CreateTree", "PutAttachments"):
        await house.meter.admit(method, ACME)


async def test_a_call_that_would_pass_a_quota_is_refused_by_what_it_adds() -> None:
    house = House(Quotas(nodes=3, bytes=2000))
    three = GrowRequest(steps=[Step(content="x")] * 3)
    for fitting in (three, SetSlotsRequest(writes=[SlotWrite(key="k")] * 3), MergeRequest(pick=[1, 2, 3])):
        await house.meter.admit(type(fitting).__name__.removesuffix("Request"), ACME, fitting)
    four = GrowRequest(steps=[Step(content="x")] * 4)
    error = await house.refused("Grow", four)
    assert error.metadata == {"quota": "nodes", "used": "0", "limit": "3", "adds": "4"}
    assert "0 of 3 are used, and this adds 4" in error.message
    for method, large in (
        ("Grow", GrowRequest(steps=[Step(content="x" * 2000)])),
        ("PutAttachments", PutAttachmentsRequest(attachments=[Attachment(data=bytes(2000))])),
    ):
        assert (await house.refused(method, large)).metadata["quota"] == "bytes"
    await house.meter.admit("Grow", ACME, three)


async def test_the_requests_of_a_stream_are_counted_and_not_its_opening() -> None:
    house = House(Quotas(requests_per_minute=1))
    await house.meter.admit("GrowStream", ACME)
    await house.meter.admit("Grow", ACME, GrowRequest(steps=[Step(content="x")]))
    await house.refused("Grow")


async def test_what_an_import_is_found_to_add_is_refused_where_it_is_too_much() -> None:
    house = House(Quotas(nodes=3))
    memory = Memory(house.trees, lambda: "unused", 1.0)
    ref = TreeRef(TenantId("other"), TreeId("t"))
    await memory.create_tree(ref.tenant, "", ref.tree, "", (), TreePolicy(), {})
    await grow(house.trees, ref, "a", "b", "c", "d")

    async def imported(name: str) -> None:
        await memory.import_tree(ACME, name, memory.export(ref), partial(house.meter.fits, ACME))

    with pytest.raises(ResourceExhaustedError) as caught:
        await imported("copy")
    assert caught.value.metadata["quota"] == "nodes"
    with pytest.raises(NotFoundError):
        await memory.get_tree(TreeRef(ACME, TreeId("copy")))
    house = House(Quotas(nodes=4))
    await imported("copy")


async def test_a_refusal_is_never_founded_on_an_old_sum() -> None:
    house = House(Quotas(trees=1))
    await house.meter.admit("CreateTree", ACME)
    house.meter.count(ACME, Usage(5, 0, 0))  # trees that have expired since
    await house.meter.admit("CreateTree", ACME)
    house.meter.count(ACME, Usage(5, 0, 0))
    await house.refused("CreateTree")  # counted anew once a minute at most
    house.clock.s += 61
    await house.meter.admit("CreateTree", ACME)


async def test_requests_are_limited_per_minute_and_usage_may_still_be_asked() -> None:
    house = House(Quotas(requests_per_minute=3))
    for _ in range(3):
        await house.meter.admit("GetPath", ACME)
    error = await house.refused("GetPath")
    assert error.metadata["quota"] == "requests_per_minute"
    assert error.retry_after_s == pytest.approx(20.0)
    await house.meter.admit("GetUsage", ACME)
    house.clock.s += 20
    await house.meter.admit("GetPath", ACME)


async def test_other_processes_and_other_tenants_count_as_they_should() -> None:
    house = House(Quotas(requests_per_minute=3))
    await house.sums.settle(ACME, Usage(), 3, house.clock.wall_ms() // 60_000)
    await house.refused("GetPath")
    await house.meter.admit("GetPath", TenantId("other"))


async def test_a_tenants_own_quotas_hold_instead_of_the_defaults() -> None:
    house = House(Quotas(requests_per_minute=1))
    await house.sums.set_quotas(ACME, Quotas(requests_per_minute=2))
    for _ in range(2):
        await house.meter.admit("GetPath", ACME)
    await house.refused("GetPath")


async def test_what_was_counted_is_settled_at_the_end() -> None:
    house = House(Quotas())
    house.meter.count(ACME, Usage(1, 2, 3))
    await house.meter.close()
    assert (await house.sums.settle(ACME, Usage(), 0, 0)).usage == Usage(1, 2, 3)


async def test_what_could_not_be_settled_is_kept() -> None:
    house = House(Quotas())
    await house.meter.admit("Grow", ACME)

    class Down(TwinUsageStore):
        async def settle(self, tenant: TenantId, added: Usage, requests: int, minute: int) -> Settled:
            raise ResourceExhaustedError("down")

    up: UsageStore = house.sums
    house.meter._store = Down(house.trees)
    house.meter.count(ACME, Usage(1, 2, 3))
    with pytest.raises(ResourceExhaustedError):
        await house.meter.usage(ACME, recount=False)
    house.meter._store = up
    assert (await house.meter.usage(ACME, recount=False))[0].usage == Usage(1, 2, 3)


async def test_blocks_are_refused_where_bytes_are_used_up_and_may_still_be_deleted() -> None:
    house = House(Quotas(bytes=100))
    owner = BlockOwner(ACME, BlockScope.TENANT)
    await house.meter.admit("PutBlock", ACME)
    await house.blocks.put(owner, "notes", Content(b"x" * 200), None, 0, NO_REQUEST)
    assert (await house.refused("PutBlock")).metadata["quota"] == "bytes"
    await house.meter.admit("DeleteBlock", ACME)
    await house.blocks.delete(owner, "notes", None, True, NO_REQUEST)
    await house.meter.admit("PutBlock", ACME)
