"""Items of the OpenAI Agents SDK as steps of a tree, and back.

A step says in plain words what the item says, so that contexts, summaries and searches see a conversation; what the
words do not carry is kept beside them, byte for byte. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from katsura.api.memory.v1 import memory_pb2 as pb

Item = dict[str, Any]
"""A response input item, as JSON."""

_ROLES = frozenset({"user", "assistant", "system"})
_KINDS = {"function_call": pb.STEP_KIND_TOOL_CALL, "function_call_output": pb.STEP_KIND_OBSERVATION}
_PROVENANCE = {"user": pb.PROVENANCE_USER, "assistant": pb.PROVENANCE_MODEL, "tool": pb.PROVENANCE_TOOL}


def step_of(item: Mapping[str, Any]) -> pb.Step:
    """A step that `item_of` gives back as `item`."""
    kind = str(item.get("type", "message"))
    role = str(item.get("role", "tool" if kind.endswith("_output") else "assistant"))
    step = pb.Step(
        kind=_KINDS.get(kind, pb.STEP_KIND_MESSAGE if kind == "message" else pb.STEP_KIND_NOTE),
        role=role if role in _ROLES | {"tool"} else "system",
        content=_text(item.get("content", item.get("output", item.get("summary", "")))),
    )
    step.provenance = _PROVENANCE.get(step.role, pb.PROVENANCE_SYSTEM)
    if kind == "function_call":
        step.tool_call.name = str(item.get("name") or "unknown")
        step.tool_call.call_id = str(item.get("call_id", ""))
        step.tool_call.arguments_json = str(item.get("arguments", ""))
    if item_of(step) != item:
        step.opaque = json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode()
    return step


def item_of(step: pb.Step) -> Item:
    """The item that a step holds; a step that others wrote becomes a message."""
    if step.opaque:
        found = json.loads(step.opaque)
        return dict(found)
    if step.HasField("tool_call"):
        call = step.tool_call
        return {
            "type": "function_call",
            "call_id": call.call_id,
            "name": call.name,
            "arguments": call.arguments_json,
        }
    if step.role == "tool":
        return {"role": "user", "content": f"[tool] {step.content}"}
    return {"role": step.role, "content": step.content}


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        return _text(content.get("text", content.get("refusal", "")))
    if isinstance(content, list):
        return "\n".join(text for text in map(_text, content) if text)
    return ""
