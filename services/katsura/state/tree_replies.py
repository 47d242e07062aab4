"""What the functions of memory trees answer, as domain data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any, Final

from katsura.domain.ids import BranchName, NodeId
from katsura.domain.trees import (
    ROOT,
    ROOT_HASH,
    Branch,
    BranchState,
    EventKind,
    Hint,
    Judgement,
    Node,
    Origin,
    Shown,
    StandingEffect,
    Step,
    Tree,
)
from katsura.state.tree_records import (
    body_of,
    check_chain,
    judgement_of,
    known_fields,
    node_of,
    policy_of,
    retention_of,
    unpack_ids,
)
from katsura.state.trees import Event, Position, TreeRef, excerpt, standing_of

_KEPT: Final = 8192
_KEPT_BYTES: Final = 2048
_BRANCH_STATES: Final = frozenset(BranchState)
_EVENT_KINDS: Final = frozenset(EventKind)


def index_name(ref: TreeRef, created_ms: int) -> bytes:
    """Member of the tenant's index for a tree."""
    return f"{created_ms:013}:{ref.tree}".encode()


def position_of(said: Mapping[str, Any]) -> Position:
    """The point in time of a commit."""
    return Position(said["revision"], said["incarnation"])


def branch_of(found: Mapping[str, Any]) -> Branch:
    """A branch from its stored JSON. What a newer version of us keeps with it is not for us; functions keep it. A state
    that only a newer version knows is UNSPECIFIED: as every state but ACTIVE, it takes no writes."""
    fields = known_fields(Branch, found)
    state = fields["state"]
    fields["state"] = BranchState(state) if state in _BRANCH_STATES else BranchState.UNSPECIFIED
    return Branch(**fields)


def tree_of(ref: TreeRef, flat: Sequence[bytes]) -> Tree:
    """A tree from its `meta` hash, given as a flat list."""
    meta = dict(zip(flat[::2], flat[1::2], strict=True))
    return Tree(
        tree_id=ref.tree,
        goal=meta[b"goal"].decode(),
        pins=tuple(json.loads(meta[b"pins"])),
        policy=replace(
            policy_of(meta[b"policy"]),
            rollup_fanout=int(meta.get(b"rollup", 0)),
            ttl_s=int(meta[b"ttl_ms"]) // 1000,
            retention=retention_of(meta.get(b"retention", b"")),
        ),
        labels=json.loads(meta[b"labels"]),
        revision=int(meta[b"revision"]),
        incarnation=meta[b"incarnation"].decode(),
        default_branch=BranchName(meta[b"default"].decode()),
        node_count=int(meta[b"next"]),
        branch_count=int(meta[b"branch_count"]),
        create_ms=int(meta[b"created"]),
        update_ms=int(meta[b"updated"]),
        origin=origin_of(meta.get(b"origin", b"")),
        agent_id=meta.get(b"agent", b"").decode(),
    )


def origin_json(origin: Origin | None) -> str:
    """Where a tree was forked off, as the store keeps it."""
    return json.dumps(asdict(origin)) if origin else ""


def origin_of(text: bytes | str) -> Origin | None:
    """The way back from `origin_json`."""
    return Origin(**known_fields(Origin, json.loads(text))) if text else None


def _judgement(stored: bytes) -> Judgement | None:
    if not stored:
        return None
    head, _, text = stored.partition(b"\n")
    return judgement_of(text, int(head.split(b" ")[1]))


def link_hash(link: bytes) -> bytes:
    """Content hash of the node that a link belongs to."""
    return bytes.fromhex(link.rpartition(b" ")[2].decode())


def stored_node(found: Sequence[Any]) -> Node:
    """A node with everything kept beside it; a first node is checked against its content hash."""
    node_id, link, stored, verdict, blob, tokenized, extras, references, marks = found
    node = node_of(node_id, link, stored, _judgement(verdict), blob, tokenized, extras, references, marks)
    if node.parent_id == ROOT:
        check_chain(node_id, ROOT_HASH, stored, node.content_hash)
    return node


class ShownNodes:
    """Nodes as snapshots carry them. Short ones, which every assembly of a branch reads again, are kept by all that
    they are made of, so none is ever out of date. Dropping this object drops what it keeps."""

    def __init__(self) -> None:
        self._before = lru_cache(_KEPT)(_shown)

    def of(self, found: Sequence[Any]) -> Shown:
        """A node."""
        return _shown(*found) if len(found[2]) + len(found[5]) > _KEPT_BYTES else self._before(*found)


def _shown(node_id: int, link: bytes, stored: bytes, verdict: bytes, count: int, token_ids: bytes) -> Shown:
    node = node_of(node_id, link, stored, _judgement(verdict))
    return Shown(node, None if count < 0 else count, unpack_ids(token_ids))


def excerpt_of(stored: bytes) -> str:
    """The first words of a stored step."""
    step = body_of(ROOT, stored.partition(b"\n")[2], b"")
    assert isinstance(step, Step), "branches are made of steps"
    return excerpt(step)


def effects_of(node_id: int, stored: bytes) -> tuple[StandingEffect, ...]:
    """A stored step as the effect that it left standing, if it did; a stored hint as those that it tells of."""
    body = body_of(node_id, stored.partition(b"\n")[2], b"")
    if isinstance(body, Hint):
        return body.standing
    assert isinstance(body, Step), "only steps have effects"
    return (standing_of(NodeId(node_id), body),) if not body.harmless else ()


def event_of(tree_id: str, incarnation: str, entry: bytes, said: Mapping[bytes, bytes]) -> Event:
    """A commit from its stream entry; of a kind that only a newer version of us knows, it is UNSPECIFIED."""
    name, kind = entry.decode(), int(said[b"k"])
    return Event(
        kind=EventKind(kind) if kind in _EVENT_KINDS else EventKind.UNSPECIFIED,
        position=Position(int(name.partition("-")[0]), incarnation),
        branch=said[b"b"].decode(),
        node_ids=tuple(NodeId(int(n)) for n in said[b"n"].split()),
        resume_token=f"{incarnation}.{name}",
        tree_id=tree_id,
    )
