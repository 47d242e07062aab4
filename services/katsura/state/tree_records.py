"""How nodes of memory trees are written down: canonical records, content hashes, and the way back.

A record is what its content hash covers: a salt of 16 bytes, then JSON with one-letter names in which defaults are
absent. `H(parent, salt, content)` chains a node to its whole past, and the salt, drawn per node, makes a redacted
node's hash say nothing about what it was.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Final

from katsura.domain.errors import DataLossError, Reason
from katsura.domain.ids import BranchName, NodeId
from katsura.domain.retention import Retention
from katsura.domain.trees import (
    NO_COST,
    REDACTED,
    ROOT,
    Attachment,
    Body,
    Check,
    Cost,
    Durability,
    Effect,
    Hint,
    Judgement,
    Node,
    Provenance,
    Reference,
    ReferenceKind,
    Relation,
    Resolution,
    Slot,
    StaleMark,
    StaleReason,
    StandingEffect,
    Step,
    StepKind,
    Summary,
    SummaryBody,
    SummaryStatus,
    ToolCall,
    TreePolicy,
    Verdict,
    Wait,
    WaitKind,
)

SALT_BYTES: Final = 16
HASH_BYTES: Final = 32
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False)
_TOMBSTONE: Final = b',"x":1}'
"""How the record of a redacted node ends."""
_MERGE_IGNORES: Final = ("i", "o")
"""Fields in which identical children may differ: the client's step id, and the cost."""


def known_fields(kind: type, found: Mapping[str, Any]) -> dict[str, Any]:
    """What of a record are fields of the dataclass `kind`: what a newer version of us keeps with it is not for us."""
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    return {**found} if found.keys() <= names.keys() else {name: found[name] for name in found if name in names}


def is_tombstone(record: bytes) -> bool:
    """Whether Redact wrote this record."""
    return record.endswith(_TOMBSTONE)


def content_hash(parent: bytes, record: bytes) -> bytes:
    """H(parent, salt, content) of a node whose record is `record`, 32 bytes."""
    return blake2b(parent + record, digest_size=HASH_BYTES, person=b"katsura-node").digest()


def record_of(body: Body, salt: bytes) -> bytes:
    """The record of a node: its salt and its canonical fields."""
    return salt + _json(_FIELDS_OF[type(body)](body))


def body_digest(step: Step, namespace: bytes) -> str:
    """Digest by which identical children and repeated steps of one tree (`namespace`) are recognised, 24 hex digits."""
    return digested_record(step, b"", namespace)[0]


def digested_record(step: Step, salt: bytes, namespace: bytes) -> tuple[str, bytes]:
    """`body_digest` and `record_of` of a step, in one go."""
    fields = _step_fields(step)
    text = _json(fields)
    record, ignored = salt + text, [name for name in _MERGE_IGNORES if name in fields]
    if ignored:
        for name in ignored:
            del fields[name]
        text = _json(fields)
    return blake2b(text, digest_size=12, key=namespace[:64]).hexdigest(), record


def body_of(node_id: int, record: bytes, blob: bytes) -> Body:
    """The way back from `record_of` and `blob_of`.

    Raises:
        DataLossError: the stored bytes are not a record.
    """
    try:
        fields = json.loads(record[SALT_BYTES:])
        return _BODY_OF[fields["t"]](fields, blob)
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise DataLossError(
            f"node {node_id} cannot be read back: the stored record is not what was written",
            reason=Reason.UNSPECIFIED,
            metadata={"node": str(node_id)},
        ) from error


def blob_of(step: Step) -> bytes:
    """Opaque bytes and attachments, kept out of line; empty where there are none."""
    if not step.opaque and not step.attachments:
        return b""
    parts = [_sized(step.opaque)]
    for item in step.attachments:
        head = _json([item.task, item.index, item.media_type])
        parts += [_sized(head), _sized(item.data)]
    return b"".join(parts)


def stored_size(node: Node) -> int:
    """Bytes that a node takes in an answer, for the limits of one."""
    blob = blob_of(node.body) if isinstance(node.body, Step) else b""
    beside = sum(len(extra_of(item)) for item in node.attachments)
    return len(record_of(node.body, bytes(SALT_BYTES))) + len(blob) + beside


def extra_key(item: Attachment) -> str:
    """What identifies an attachment beside its node."""
    return f"{item.index}:{item.task}"


def extra_payload(item: Attachment) -> bytes:
    """An attachment as it is kept beside its node, after its key."""
    return _sized(_json([item.task, item.index, item.media_type])) + item.data


def extra_of(item: Attachment) -> bytes:
    """The whole entry: size of the key, key, payload."""
    key = extra_key(item).encode()
    return b"%d %s" % (len(key), key) + extra_payload(item)


def extra_from(entry: bytes) -> Attachment:
    """The way back from `extra_of`."""
    size, _, rest = entry.partition(b" ")
    payload = rest[int(size) :]
    (head,) = struct.unpack_from("<I", payload)
    task, index, media_type = json.loads(payload[4 : 4 + head])
    return Attachment(task, index, media_type, payload[4 + head :])


def redacted_body(body: Body) -> Body:
    """What Redact leaves of a body (`functions/memory_7_redact.lua` does the same)."""
    match body:
        case Step():
            wait = Wait(body.wait.kind, REDACTED) if body.wait else None
            ended = (body.resolves, body.resolution)
            return Step(REDACTED, body.role, body.kind, wait=wait, resolves=ended[0], resolution=ended[1])
        case Summary():
            return replace(body, body=SummaryBody(REDACTED))
        case Hint():
            return replace(body, reason=REDACTED, first_action=REDACTED, standing=())
        case Slot():
            return replace(body, value=REDACTED, note="")


def node_of(
    node_id: int,
    link: bytes,
    stored: bytes,
    judgement: Judgement | None,
    blob: bytes = b"",
    tokenized: bytes = b"",
    extras: Sequence[bytes] = (),
    references: bytes = b"",
    marks: Sequence[Sequence[Any]] = (),
) -> Node:
    """A node from its link and its stored form (`functions/memory_1_tree.lua` writes both)."""
    head, _, record = stored.partition(b"\n")
    now, revision, branch = head.split(b" ")
    parent, _, _, depth, tokens, cum, _, _, digest = link.split(b" ")
    return Node(
        node_id=NodeId(node_id),
        parent_id=NodeId(int(parent)),
        content_hash=bytes.fromhex(digest.decode()),
        birth_branch=BranchName(branch.decode()),
        depth=int(depth),
        create_ms=int(now),
        revision=int(revision),
        body=body_of(node_id, record, blob),
        tokens=int(tokens),
        path_tokens=int(cum),
        judgement=judgement,
        tokenized_for=tuple(tokenized.decode().split()),
        attachments=tuple(map(extra_from, extras)),
        redacted=is_tombstone(record),
        references=references_of(references) if references else (),
        stale=tuple(map(mark_of, marks)),
    )


def check_chain(node_id: int, parent_hash: bytes, stored: bytes, found: bytes) -> None:
    """Refuse a stored node whose content hash is not `found`.

    Raises:
        DataLossError: a byte changed after it was written.
    """
    record = stored.partition(b"\n")[2]
    if not is_tombstone(record) and content_hash(parent_hash, record) != found:
        raise DataLossError(
            f"node {node_id} is damaged: its content does not match its hash; its siblings can still be read",
            reason=Reason.UNSPECIFIED,
            metadata={"node": str(node_id)},
        )


def judgement_json(judgement: Judgement) -> str:
    """A judgement as JSON, without its version (the store counts that)."""
    checks = [[c.validator, int(c.verdict), list(c.findings)] for c in judgement.checks]
    fields = [int(judgement.status), int(judgement.fidelity), int(judgement.outcome), judgement.note]
    # For older versions of us 0 is none. The root is null, which they read as none, too.
    restore = None if judgement.suggested_restore == ROOT else judgement.suggested_restore or 0
    return _json([*fields, restore, list(judgement.required), checks]).decode()


def judgement_of(text: str | bytes, version: int) -> Judgement:
    """The way back from `judgement_json`."""
    status, fidelity, outcome, note, restore, required, checks, *_ = json.loads(text)
    return Judgement(
        status=SummaryStatus(status),
        fidelity=Verdict(fidelity),
        outcome=Verdict(outcome),
        note=note,
        suggested_restore=ROOT if restore is None else NodeId(restore) if restore else None,
        required=tuple(required),
        checks=tuple(Check(name, Verdict(verdict), tuple(findings)) for name, verdict, findings in checks),
        version=version,
    )


def references_json(references: Iterable[Reference], *, declared: bool = False) -> str:
    """References as the store keeps them."""
    return _json([[r.node_id, int(r.kind), int(declared or r.declared), r.tree_id] for r in references]).decode()


def references_of(text: str | bytes) -> tuple[Reference, ...]:
    """The way back from `references_json`."""
    found = json.loads(text)
    return tuple(Reference(NodeId(n), ReferenceKind(kind), tree, bool(told)) for n, kind, told, tree, *_ in found)


def mark_of(found: Sequence[Any]) -> StaleMark:
    """A mark as the store keeps it, or as it answers it."""
    seen_from, cause, reason, tree, *_ = (*found, "")
    tree_id = tree.decode() if isinstance(tree, bytes) else str(tree)
    return StaleMark(NodeId(seen_from), NodeId(cause), StaleReason(reason), tree_id)


def marks_list(marks: Iterable[StaleMark]) -> list[list[Any]]:
    """Marks as the store keeps them, as JSON data."""
    return [[m.seen_from, m.cause, int(m.reason), *([m.tree_id] if m.tree_id else ())] for m in marks]


def looked_json(marks: Iterable[StaleMark] | None) -> str:
    """The marks of another tree's node as they were last seen, as the store keeps them; None: never seen."""
    return "" if marks is None else _json(marks_list(marks)).decode()


def looked_of(text: str | bytes) -> tuple[StaleMark, ...] | None:
    """The way back from `looked_json`."""
    return tuple(map(mark_of, json.loads(text))) if text else None


def policy_json(policy: TreePolicy) -> str:
    """A policy as JSON."""
    numbers = [policy.raw_token_limit, policy.hint_limit, int(policy.durability), policy.ttl_s]
    return _json([*numbers, policy.compressor, list(policy.validators)]).decode()


def policy_of(text: str | bytes) -> TreePolicy:
    """The way back from `policy_json`. What a newer version of us adds is not for us."""
    raw, hints, durability, ttl, compressor, validators, *_ = json.loads(text)
    return TreePolicy(raw, compressor, tuple(validators), hints, Durability(durability), ttl)


def retention_json(retention: Retention | None) -> str:
    """A retention as JSON; empty where there is none."""
    return _json([retention.abandoned, retention.revisions, retention.abandoned_s]).decode() if retention else ""


def retention_of(text: str | bytes) -> Retention | None:
    """The way back from `retention_json`."""
    return Retention(*json.loads(text)[:3]) if text else None


def pack_ids(token_ids: Sequence[int]) -> bytes:
    """Token ids as little-endian u32."""
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


def unpack_ids(data: bytes) -> tuple[int, ...]:
    """The way back from `pack_ids`."""
    return struct.unpack(f"<{len(data) // 4}I", data)


def _json(value: object) -> bytes:
    return _ENCODER.encode(value).encode()


def _sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _step_fields(step: Step) -> dict[str, Any]:
    call, cost, wait = step.tool_call, step.cost, step.wait
    fields: dict[str, Any] = {"t": "s", "r": step.role, "c": step.content}
    said: tuple[tuple[str, Any], ...] = (
        ("i", step.client_step_id),
        ("k", int(step.kind)),
        ("n", step.related_node_ids),
        ("u", step.undo_ref),
        ("p", int(step.provenance)),
        ("a", step.attributes),
        ("g", step.agent_id),
        ("f", call and [call.call_id, call.name, call.arguments_json]),
        ("y", wait and [int(wait.kind), wait.what]),
        ("z", step.resolves and [step.resolves, int(step.resolution)]),
    )
    for name, value in said:
        if value:
            fields[name] = value
    if step.relation > Relation.NEW:
        fields["l"] = int(step.relation)
    if step.effect > Effect.NONE:
        fields["e"] = int(step.effect)
    if cost is not NO_COST and cost != NO_COST:
        fields["o"] = [cost.prompt_tokens, cost.cached_tokens, cost.completion_tokens, cost.micros]
    if blob := blob_of(step):
        fields["b"] = blake2b(blob, digest_size=16).hexdigest()
    if step.references:
        fields["d"] = [[r.node_id, int(r.kind), *([r.tree_id] if r.tree_id else [])] for r in step.references]
    return fields


def _summary_fields(summary: Summary) -> dict[str, Any]:
    body = summary.body
    lists = {"f": body.facts, "d": body.decisions, "o": body.open_obligations, "a": body.artifacts, "s": summary.parts}
    return {
        "t": "c",
        "c": body.text,
        "l": summary.level,
        "w": [summary.first_covered, summary.last_covered, summary.covered_count],
        "h": summary.cover_digest.hex(),
        "m": summary.made_by,
        "v": summary.version,
        "k": [summary.covered_tokens, summary.body_tokens],
        **{name: list(items) for name, items in lists.items() if items},
    }


def _hint_fields(hint: Hint) -> dict[str, Any]:
    nodes = [hint.abandoned_head, hint.restored_after, hint.previous_hint]
    fields = {"t": "h", "b": hint.abandoned_branch, "n": nodes, "c": hint.reason, "f": hint.first_action}
    standing = [[e.node_id, int(e.effect), e.undo_ref, e.excerpt] for e in hint.standing]
    return {**fields, "e": standing} if standing else fields


def _slot_fields(slot: Slot) -> dict[str, Any]:
    fields = {"t": "v", "k": slot.key, "c": slot.value, "l": int(slot.relation), "n": [slot.previous, slot.restores]}
    return {**fields, "m": slot.note} if slot.note else fields


def _slot_of(fields: Mapping[str, Any], _: bytes) -> Slot:
    previous, restores = (NodeId(n) for n in fields["n"])
    return Slot(fields["k"], fields["c"], Relation(fields["l"]), fields.get("m", ""), previous, restores)


def _step_of(fields: Mapping[str, Any], blob: bytes) -> Step:
    call, cost, wait = fields.get("f"), fields.get("o"), fields.get("y")
    resolves, resolution = fields.get("z", (0, 0))
    opaque, attachments = _unblob(blob)
    return Step(
        content=fields["c"],
        role=fields["r"],
        kind=StepKind(fields.get("k", 0)),
        client_step_id=fields.get("i", ""),
        tool_call=ToolCall(*call) if call else None,
        relation=Relation(fields.get("l", Relation.NEW)),
        related_node_ids=tuple(NodeId(n) for n in fields.get("n", ())),
        effect=Effect(fields.get("e", Effect.NONE)),
        undo_ref=fields.get("u", ""),
        provenance=Provenance(fields.get("p", 0)),
        cost=Cost(*cost) if cost else NO_COST,
        attributes=fields.get("a", {}),
        opaque=opaque,
        attachments=attachments,
        agent_id=fields.get("g", ""),
        references=tuple(
            Reference(NodeId(node), ReferenceKind(kind), *tree) for node, kind, *tree in fields.get("d", ())
        ),
        wait=Wait(WaitKind(wait[0]), wait[1]) if wait else None,
        resolves=NodeId(resolves),
        resolution=Resolution(resolution),
    )


def _unblob(blob: bytes) -> tuple[bytes, tuple[Attachment, ...]]:
    parts: list[bytes] = []
    at = 0
    while at < len(blob):
        (size,) = struct.unpack_from("<I", blob, at)
        parts.append(blob[at + 4 : at + 4 + size])
        at += 4 + size
    if not parts:
        return b"", ()
    attachments = []
    for head, data in zip(parts[1::2], parts[2::2], strict=True):
        task, index, media_type = json.loads(head)
        attachments.append(Attachment(task, index, media_type, data))
    return parts[0], tuple(attachments)


def _summary_of(fields: Mapping[str, Any], _: bytes) -> Summary:
    first, last, count = fields["w"]
    lists = (tuple(fields.get(name, ())) for name in "fdoa")
    return Summary(
        level=fields["l"],
        first_covered=NodeId(first),
        last_covered=NodeId(last),
        covered_count=count,
        cover_digest=bytes.fromhex(fields["h"]),
        body=SummaryBody(fields["c"], *lists),
        made_by=fields["m"],
        version=fields["v"],
        covered_tokens=fields["k"][0],
        body_tokens=fields["k"][1],
        parts=tuple(NodeId(part) for part in fields.get("s", ())),
    )


def _hint_of(fields: Mapping[str, Any], _: bytes) -> Hint:
    head, restored, previous = (NodeId(n) for n in fields["n"])
    standing = tuple(StandingEffect(NodeId(n), Effect(e), undo, said) for n, e, undo, said in fields.get("e", ()))
    return Hint(BranchName(fields["b"]), head, restored, fields["c"], fields["f"], previous, standing)


_FIELDS_OF: Final[Mapping[type, Callable[[Any], dict[str, Any]]]] = {
    Step: _step_fields,
    Summary: _summary_fields,
    Hint: _hint_fields,
    Slot: _slot_fields,
}
_BODY_OF: Final[Mapping[str, Callable[[Mapping[str, Any], bytes], Body]]] = {
    "s": _step_of,
    "c": _summary_of,
    "h": _hint_of,
    "v": _slot_of,
}
