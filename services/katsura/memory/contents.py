"""What a tree holds beside its paths: its own texts, bytes put beside nodes, listing, finding, searching, erasing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from katsura.domain.ids import NodeId, checked_name
from katsura.domain.trees import Attachment, Node, Step, Tree, request_of
from katsura.memory.core import limits
from katsura.memory.core.search import excerpt_around, says, words_of
from katsura.memory.operations import ID_MAX, Operations, committing
from katsura.state.contents import FoundStep, NodePage, Scope, TreeChange
from katsura.state.trees import TreeRef

_REDACT_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Hit:
    """A node that says the words, the text around the first of them, and whether a branch that was not abandoned
    holds it."""

    node: Node
    excerpt: str
    live: bool


class Contents(Operations):
    """The operations that are not about branches."""

    async def update_tree(self, ref: TreeRef, request_id: str, change: TreeChange) -> Tree:
        """Change goal, pins, labels, the default branch, retention or time to live of a tree."""
        limits.check_text(request_id, "request_id")
        limits.check_tree(change.goal or "", change.add_pins, change.set_labels, adding=True)
        if change.default_branch:
            checked_name(change.default_branch, "default_branch")
        if change == TreeChange():
            raise limits.refuse("goal", "nothing is named that should change")
        both = set(change.add_pins) & set(change.remove_pins)
        if both:
            raise limits.refuse("remove_pins", f"{min(both)[:64]!r} is added by the same call")
        limits.check_retention(change.retention, "retention")
        if change.ttl_s is not None:
            limits.check_range(change.ttl_s, "ttl_s", 0, limits.TTL_S_MAX)
        if set(change.set_labels) & set(change.remove_labels):
            raise limits.refuse("remove_labels", "a label is set by the same call")
        with committing("update"):
            return await self._trees.update(ref, change, request_of(request_id, "update", change))

    async def put_attachments(
        self, ref: TreeRef, node_id: int, attachments: Sequence[Attachment], replace: bool
    ) -> tuple[tuple[bool, ...], int]:
        """Put bytes beside a node, keyed by (task, index); which were written, and the revision."""
        limits.check_range(node_id, "node_id", 1, ID_MAX)
        if not 1 <= len(attachments) <= limits.STEPS_MAX:
            raise limits.refuse("attachments", f"{len(attachments)}; from 1 to {limits.STEPS_MAX} are taken")
        for i, item in enumerate(attachments):
            limits.check_text(item.task, f"attachments[{i}].task")
            limits.check_text(item.media_type, f"attachments[{i}].media_type")
        keys = {(item.task, item.index) for item in attachments}
        if len(keys) < len(attachments):
            raise limits.refuse("attachments", "a (task, index) is in this request twice")
        with committing("attach"):
            return await self._trees.put_attachments(ref, node_id, attachments, replace)

    async def list_nodes(
        self, ref: TreeRef, before: int, size: int, birth_branch: str, attributes: Mapping[str, str], agent_id: str
    ) -> NodePage:
        """Nodes of all branches, newest first."""
        limits.check_range(before, "before_node", 0, ID_MAX)
        limits.check_map(attributes, "attributes")
        page = await self._trees.list_nodes(ref, before, limits.page_size(size), limits.ANSWER_BYTES_MAX, birth_branch)
        if not attributes and not agent_id:
            return page
        wanted = tuple(n for n in page.nodes if isinstance(n.body, Step) and _carries(n.body, attributes, agent_id))
        return NodePage(wanted, page.next_before)

    async def find_steps(
        self, ref: TreeRef, client_step_ids: Sequence[str], branch: str
    ) -> tuple[tuple[FoundStep, Node], ...]:
        """Steps by client id, on one branch or on every one."""
        if not 1 <= len(client_step_ids) <= limits.STEPS_MAX:
            raise limits.refuse("client_step_ids", f"{len(client_step_ids)}; from 1 to {limits.STEPS_MAX} are taken")
        for i, client in enumerate(client_step_ids):
            limits.check_text(client, f"client_step_ids[{i}]")
        found = (await self._trees.find_steps(ref, client_step_ids, branch))[: limits.NODES_MAX]
        nodes = await self._trees.nodes(ref, [f.node_id for f in found], limits.ANSWER_BYTES_MAX) if found else ()
        return tuple(zip(found, nodes, strict=True))

    async def search(
        self,
        ref: TreeRef,
        scope: Scope,
        branch: str,
        query: str,
        before: int,
        size: int,
        include_abandoned: bool,
    ) -> tuple[tuple[Hit, ...], NodeId]:
        """Nodes that say every word of `query`, newest first, and where the next page begins (0 at the end)."""
        limits.check_text(query, "query")
        limits.check_range(before, "before_node", 0, ID_MAX)
        words = words_of(query)
        if not words:
            raise limits.refuse("query", "it holds no word")
        quoted = [json.dumps(word, ensure_ascii=False)[1:-1].encode() for word in words]
        hits = await self._trees.search(
            ref,
            scope or Scope.PATH,
            branch,
            quoted,
            before,
            limits.page_size(size),
            limits.ANSWER_BYTES_MAX,
            include_abandoned,
        )
        found = tuple(
            Hit(node, excerpt_around(node.body, words), live)
            for node, live in zip(hits.nodes, hits.live, strict=True)
            if says(node.body, words)
        )
        return found, hits.next_before

    async def redact(self, ref: TreeRef, request_id: str, node_ids: Sequence[int]) -> tuple[tuple[NodeId, ...], int]:
        """Destroy the content of nodes, and of summaries and hints that may quote them; their ids, and the revision."""
        limits.check_text(request_id, "request_id")
        if not 1 <= len(node_ids) <= _REDACT_MAX:
            raise limits.refuse("node_ids", f"{len(node_ids)}; from 1 to {_REDACT_MAX} are taken")
        for i, node_id in enumerate(node_ids):
            limits.check_range(node_id, f"node_ids[{i}]", 1, ID_MAX)
        with committing("redact"):
            return await self._trees.redact(ref, node_ids, request_of(request_id, "redact", tuple(node_ids)))


def _carries(step: Step, attributes: Mapping[str, str], agent_id: str) -> bool:
    return agent_id in ("", step.agent_id) and all(step.attributes.get(k) == v for k, v in attributes.items())
