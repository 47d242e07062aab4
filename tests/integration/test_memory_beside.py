"""Grow takes bytes for other nodes along: both are done, and neither hangs on the other."""

from __future__ import annotations

import asyncio

import pytest

from katsura.api.memory.v1 import memory_contents_pb2 as contents_pb
from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.domain.errors import ConflictError, InvalidArgumentError
from katsura.sdk.blocking import at_once
from katsura.sdk.memory import step
from katsura.sdk.sync import Katsura


def beside(node: int, *tasks: str, **more: object) -> contents_pb.PutAttachmentsRequest:
    items = [tree_pb.Attachment(task=task, data=task.encode()) for task in tasks]
    return contents_pb.PutAttachmentsRequest(node_id=node, attachments=items, **more)  # type: ignore[arg-type]


def tasks_of(katsura: Katsura, tree: str, node: int) -> list[str]:
    (found,) = katsura.run(katsura.memory.get_nodes(tree, [node]))
    return [item.task for item in found.attachments]


async def test_bytes_that_go_along_are_put_whatever_becomes_of_the_steps(katsura: Katsura) -> None:
    def use() -> None:
        tree = katsura.create_tree(tree_id="beside")
        first = tree.grow("user", "hello")
        memory = katsura.memory_here
        assert memory is not None
        puts = [beside(first, "a", "b"), beside(99, "lost"), beside(first, "c", tree_id="beside")]
        grown = at_once(memory.grow("beside", [step("user", "on")], expected_head=first, beside=puts))
        assert list(grown.put_beside) == [True, False, True]
        assert sorted(tasks_of(katsura, "beside", first)) == ["a", "b", "c"]
        with pytest.raises(ConflictError):
            at_once(memory.grow("beside", [step("user", "on")], expected_head=first, beside=[beside(first, "d")]))
        assert sorted(tasks_of(katsura, "beside", first)) == ["a", "b", "c", "d"]
        assert len(tree.path()) == 2

    await asyncio.to_thread(use)


@pytest.mark.parametrize(
    "wrong", [beside(1, "a", replace=True), beside(1, "a", tree_id="of another"), [beside(1, "a")] * 65]
)
async def test_what_would_replace_is_of_another_tree_or_too_much_does_not_go_along_and_nothing_is_grown(
    katsura: Katsura, wrong: contents_pb.PutAttachmentsRequest | list[contents_pb.PutAttachmentsRequest]
) -> None:
    def use() -> None:
        tree = katsura.create_tree()
        tree.grow("user", "hello")
        puts = wrong if isinstance(wrong, list) else [wrong]
        with pytest.raises(InvalidArgumentError, match="beside"):
            katsura.run(katsura.memory.grow(tree.tree_id, [step("user", "on")], expected_head=1, beside=puts))
        assert len(tree.path()) == 1
        assert tasks_of(katsura, tree.tree_id, 1) == []

    await asyncio.to_thread(use)
