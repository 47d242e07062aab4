"""A memory tree written down: what an archive holds, line by line, and the store's side of reading and making it.

    {"format": 1, "tree": ..., "branches": ...}     the head: everything that is not a node
    {"n": 1, ...}                                   a node, ids rising
    {"f": [[9, [[7, 1, 1, ""]]], ...], "m": ...}    references by step, marks by stale node
    {"s": [["main", "client id", 7], ...]}          steps by client id
    {"end": <nodes>, "digest": ...}                 the last line: without it nothing was imported; the digest of all
                                                    lines before it (archives of older versions have none)

`TreeStore` (trees.py) includes `TreeArchive`.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cache
from hashlib import blake2b
from types import NoneType, UnionType
from typing import Any, Final, Protocol, Union, get_args, get_origin, get_type_hints

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.ids import NodeId
from katsura.domain.trees import Branch, BranchState, Durability, Origin, Reference, StaleMark, Tree, TreePolicy
from katsura.state.contents import TreeRef
from katsura.state.foreign import Look, look_of
from katsura.state.tree_records import (
    known_fields,
    looked_json,
    looked_of,
    mark_of,
    marks_list,
    references_json,
    references_of,
    retention_json,
    retention_of,
)

FORMAT: Final = 1
_COUNT_MAX: Final = (1 << 53) - 1
_SUM_MAX: Final = 1 << 62
_LATE: Final = ("left_ms", "label", "note")
"""Fields of a branch that stand beside `branches`, whose fields older versions of us know by heart."""


@dataclass(frozen=True, slots=True)
class ArchivedHead:
    """A tree without its nodes. `usage` maps `<agent>\\n<what>` to what was charged."""

    tree: Tree
    branches: tuple[Branch, ...]
    slot_heads: Mapping[str, int]
    rollups: Mapping[int, int]
    usage: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ArchivedNode:
    """A node as it is stored: `record` is what its content hash covers; `a`, `b` as in memory_1_tree.lua."""

    node_id: NodeId
    parent: NodeId
    depth: int
    tokens: int
    a: int
    b: int
    content_hash: bytes
    head: str
    record: bytes
    verdict: str = ""
    blob: bytes = b""
    extras: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class ArchivedSteps:
    """Steps by branch and client id."""

    steps: tuple[tuple[str, str, NodeId], ...]


@dataclass(frozen=True, slots=True)
class ArchivedReferences:
    """References by step, marks by stale node, and, of a cold tree only, what was last seen of other trees."""

    references: tuple[tuple[NodeId, tuple[Reference, ...]], ...] = ()
    marks: tuple[tuple[NodeId, tuple[StaleMark, ...]], ...] = ()
    looks: tuple[Look, ...] = ()


@dataclass(frozen=True, slots=True)
class ArchivedEnd:
    """How many nodes there are, and the digest (`LineDigest`) of the lines before; b"" where the archive tells none."""

    nodes: int
    digest: bytes = b""


Archived = ArchivedHead | ArchivedNode | ArchivedReferences | ArchivedSteps


class LineDigest:
    """Digest over the lines of an archive as they come, 32 bytes. Hashes of nodes say nothing of what stands beside
    them: verdicts, marks, branches, goal and pins."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=32, person=b"katsura-lines")

    def add(self, line: bytes) -> None:
        """Take the next line, its line end included."""
        self._hash.update(line)

    @property
    def value(self) -> bytes:
        """Of all lines so far."""
        return self._hash.digest()


class TreeArchive(Protocol):
    """The part of a tree store that writes trees down and makes them again."""

    def dump(self, ref: TreeRef) -> AsyncIterator[Archived]:
        """The tree as of one moment: its head, its nodes with ids rising, its references, its steps by client id."""
        ...

    async def restore(self, ref: TreeRef, parts: AsyncIterator[Archived]) -> Tree:
        """Make a tree of what `dump` gave, all or nothing. Raises TREE_EXISTS, also where another import runs."""
        ...


def root_digest(hashes: Iterable[bytes], branches: Sequence[Branch]) -> bytes:
    """Digest over the content hashes of all nodes in order, and what each branch points to, 32 bytes."""
    digest = blake2b(digest_size=32, person=b"katsura-tree")
    for content_hash in hashes:
        digest.update(content_hash)
    for branch in sorted(branches, key=lambda b: b.order):
        digest.update(f"{branch.name} {branch.state} {branch.head} {branch.summary_head} {branch.hint}\n".encode())
    return digest.digest()


def line_of(part: Archived) -> bytes:
    """A part of an archive as a line."""
    match part:
        case ArchivedHead():
            tree, branches = asdict(part.tree), [asdict(b) for b in part.branches]
            heads, rollups = dict(part.slot_heads), [[k, v] for k, v in sorted(part.rollups.items())]
            said = {name: {b["name"]: b.pop(name) for b in branches} for name in _LATE}
            for branch, name in itertools.product(branches, ("lease_token", "lease_holder", "lease_end_ms")):
                del branch[name]  # leases end with the tree that they were taken in
            del tree["policy"]["retention"]
            fields: dict[str, Any] = {"format": FORMAT, "tree": {**tree, "labels": dict(part.tree.labels)}}
            late = {
                **{name: {branch: value for branch, value in each.items() if value} for name, each in said.items()},
                "retention": retention_json(part.tree.policy.retention),
            }
            fields |= {"branches": branches, "slot_heads": heads, "rollups": rollups, "usage": dict(part.usage)}
            return _line({**fields, **{name: value for name, value in late.items() if value}})
        case ArchivedNode():
            blobs = [_text(part.blob), *map(_text, part.extras)]
            place = [part.parent, part.depth, part.tokens, part.a, part.b]
            stored = [part.content_hash.hex(), part.head, _text(part.record), part.verdict]
            return _line({"n": part.node_id, "p": place, "r": stored, "b": blobs if any(blobs) else []})
        case ArchivedReferences():
            texts = [[node, json.loads(references_json(found))] for node, found in part.references]
            looks = {"l": [[look.place, looked_json(look.seen)] for look in part.looks]} if part.looks else {}
            return _line({"f": texts, "m": [[node, marks_list(marks)] for node, marks in part.marks], **looks})
        case ArchivedSteps():
            return _line({"s": [list(step) for step in part.steps]})


def part_of(line: bytes) -> Archived | ArchivedEnd:
    """The way back from `line_of` and `end_line`.

    Raises:
        InvalidArgumentError: it is not a line of an archive.
    """
    try:
        return _part(json.loads(line))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise InvalidArgumentError(
            f"lines: {line[:80]!r} is not a line of an archive; send the file as ExportTree wrote it", field="lines"
        ) from error


def end_line(end: ArchivedEnd) -> bytes:
    """The last line."""
    return _line({"end": end.nodes, **({"digest": end.digest.hex()} if end.digest else {})})


def _part(found: Mapping[str, Any]) -> Archived | ArchivedEnd:
    if "end" in found:
        return ArchivedEnd(int(found["end"]), bytes.fromhex(found.get("digest", "")))
    if "s" in found:
        return ArchivedSteps(tuple((str(b), str(c), NodeId(n)) for b, c, n in found["s"]))
    if "f" in found:
        return ArchivedReferences(
            tuple((NodeId(n), references_of(json.dumps(each))) for n, each in found["f"]),
            tuple((NodeId(n), tuple(map(mark_of, each))) for n, each in found["m"]),
            tuple(look_of(place, looked_of(text)) for place, text in found.get("l", ())),
        )
    if "n" in found:
        parent, depth, tokens, a, b = (_count(number) for number in found["p"])
        digest, head, record, verdict = found["r"]
        blob, *extras = [base64.b64decode(text) for text in found["b"]] or [b""]
        return ArchivedNode(
            NodeId(_count(found["n"])), NodeId(parent), depth, tokens, a, b, bytes.fromhex(digest), head,
            base64.b64decode(record), verdict, blob, tuple(extras),
        )  # fmt: skip
    if found["format"] != FORMAT:
        raise ValueError(f"format {found['format']}")
    policy = TreePolicy(**_checked(TreePolicy, found["tree"]["policy"]))
    policy = replace(
        policy,
        validators=tuple(policy.validators),
        durability=Durability(policy.durability),
        retention=retention_of(found.get("retention", "")),
    )
    origin = found["tree"].get("origin")
    tree = Tree(
        **{
            **_checked(Tree, found["tree"]),
            "policy": policy,
            "pins": tuple(map(_said, found["tree"]["pins"])),
            "labels": {_said(name): _said(value) for name, value in found["tree"]["labels"].items()},
            "origin": Origin(**_checked(Origin, origin)) if origin else None,
        }
    )
    branches = tuple(
        Branch(**_checked(Branch, {**b, **_late(found, b["name"])}) | {"state": BranchState(b["state"])})
        for b in found["branches"]
    )
    usage = {name: _sum(count) for name, count in found.get("usage", {}).items()}
    rollups = {_count(k): _count(v) for k, v in found["rollups"]}
    slot_heads = {name: _count(node) for name, node in found["slot_heads"].items()}
    return ArchivedHead(tree, branches, slot_heads, rollups, usage)


def _checked(kind: type, found: Mapping[str, Any]) -> dict[str, Any]:
    """What of a record are fields of the dataclass `kind`, if numbers are counts and texts are texts."""
    fields = known_fields(kind, found)
    for name, wanted in _hints(kind).items():
        plain = getattr(wanted, "__supertype__", wanted)
        if name in fields and plain in (int, str):
            (_count if plain is int else _said)(fields[name])
    return fields


def check_types(value: object, wanted: Any) -> None:
    """Refuse data that was read from outside where it is not what the annotation `wanted` says, at any depth.

    Raises:
        TypeError: it is not.
    """
    wanted = getattr(wanted, "__supertype__", wanted)
    origin, within = get_origin(wanted), get_args(wanted)
    found: type = type(value)
    if is_dataclass(wanted):
        fits = found is wanted
        for name, kind in _hints(found).items() if fits else ():
            check_types(getattr(value, name), kind)
    elif origin in (UnionType, Union):
        fits = value is None
        if not fits:
            return check_types(value, next(kind for kind in within if kind is not NoneType))
    elif origin is tuple:
        fits = isinstance(value, tuple)
        for each in value if isinstance(value, tuple) else ():
            check_types(each, within[0])
    elif origin is Mapping:
        fits = isinstance(value, Mapping)
        for pair in value.items() if isinstance(value, Mapping) else ():
            check_types(pair, tuple[str, ...])
    else:
        fits = isinstance(value, wanted) and (wanted is not int or (type(value) is int and abs(value) <= _SUM_MAX))
    if not fits:
        raise TypeError(f"{value!r} is no {wanted}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _COUNT_MAX:
        raise TypeError(f"{value!r} is no count")
    return value


def _sum(value: object) -> int:
    """Charges were once taken as they were told, negative ones too."""
    if type(value) is not int or abs(value) > _SUM_MAX:
        raise TypeError(f"{value!r} is no sum")
    return value


def _said(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _late(found: Mapping[str, Any], branch: str) -> dict[str, Any]:
    return {name: found[name][branch] for name in _LATE if branch in found.get(name, {})}


def _line(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
