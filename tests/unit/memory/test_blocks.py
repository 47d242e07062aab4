"""What may be asked of blocks, over the in-memory store. The stores' own suite: tests/contract."""

from __future__ import annotations

import pytest

from katsura.domain.blocks import BlockOwner, BlockScope, Content
from katsura.domain.errors import InvalidArgumentError
from katsura.domain.ids import TenantId
from katsura.memory.blocks import NAME_BYTES_MAX, VALUE_BYTES_MAX, Blocks
from katsura.state.blocks_twin import TwinBlockStore

ADA = BlockOwner(TenantId("acme"), BlockScope.USER, "ada")


@pytest.fixture
def blocks() -> Blocks:
    return Blocks(TwinBlockStore(replays=8))


async def fails(field: str, attempt: object) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await attempt  # type: ignore[misc]
    assert caught.value.field == field


async def test_a_block_has_a_media_type_of_its_own_or_is_text(blocks: Blocks) -> None:
    assert (await blocks.put(ADA, "", "n", Content(b"a", ""), None, 0)).content.media_type == "text/plain"
    assert (await blocks.put(ADA, "", "n", Content(b"a", "x/y"), None, 0)).content.media_type == "x/y"


async def test_what_is_wrong_is_named(blocks: Blocks) -> None:
    ok = Content(b"a")
    tenant = TenantId("acme")
    await fails("owner.scope", blocks.get(BlockOwner(tenant, BlockScope.UNSPECIFIED), "n"))
    await fails("owner.owner", blocks.get(BlockOwner(tenant, BlockScope.AGENT), "n"))
    await fails("owner.owner", blocks.get(BlockOwner(tenant, BlockScope.TENANT, "x"), "n"))
    await fails("name", blocks.get(ADA, ""))
    await fails("name", blocks.get(ADA, "a\nb"))
    await fails("name", blocks.get(ADA, "x" * (NAME_BYTES_MAX + 1)))
    await fails("value", blocks.put(ADA, "", "n", Content(bytes(VALUE_BYTES_MAX + 1)), None, 0))
    await fails("ttl_s", blocks.put(ADA, "", "n", ok, None, -1))
    await fails("expected_version", blocks.delete(ADA, "", "n", -1, False))


async def test_pages_are_filtered_by_attributes(blocks: Blocks) -> None:
    await blocks.put(ADA, "", "a", Content(b"1", attributes={"k": "v", "x": "y"}), None, 0)
    await blocks.put(ADA, "", "b", Content(b"2", attributes={"k": "w"}), None, 0)
    page = await blocks.page(ADA, "", {"k": "v"}, "", 0, "")
    assert [b.name for b in page.blocks] == ["a"]
    assert [b.name for b in (await blocks.page(ADA, "", {}, "B", 0, "")).blocks] == ["b"]


async def test_a_history_is_cut_where_it_would_not_fit_an_answer(blocks: Blocks) -> None:
    for i in range(16):
        await blocks.put(ADA, "", "n", Content(bytes([i]) * VALUE_BYTES_MAX), None, 0)
    history = await blocks.history(ADA, "n")
    assert [b.version for b in history] == list(range(16, 4, -1))
