"""What `POST /v1/chat/completions` answers: one object, or the chunks of a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Logprobs = Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Token counts of one request, all its choices together."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What every part of one answer repeats; `fingerprint` names the revision that drew it."""

    completion_id: str
    created_s: int
    model: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class ReplyChoice:
    """A finished answer. `node` is (tree, branch, node id) where it was kept."""

    text: str
    finish_reason: str
    logprobs: Logprobs | None
    node: tuple[str, str, int] | None = None


def usage_object(usage: TokenUsage) -> dict[str, object]:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def completion(head: ReplyHead, choices: Sequence[ReplyChoice], usage: TokenUsage) -> dict[str, object]:
    """The whole answer at once."""
    return {
        **_head(head, "chat.completion"),
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None if choice.logprobs is None else {"content": list(choice.logprobs), "refusal": None},
                "finish_reason": choice.finish_reason,
                **_node(choice.node),
            }
            for index, choice in enumerate(choices)
        ],
        "usage": usage_object(usage),
    }


def first_chunk(head: ReplyHead, index: int) -> dict[str, object]:
    """The chunk that opens a choice."""
    return _chunk(head, index, {"role": "assistant", "content": "", "refusal": None}, None, None)


def text_chunk(head: ReplyHead, index: int, text: str, logprobs: Logprobs | None) -> dict[str, object]:
    """A chunk of text."""
    return _chunk(head, index, {"content": text}, logprobs, None)


def finish_chunk(
    head: ReplyHead, index: int, finish_reason: str, node: tuple[str, str, int] | None
) -> dict[str, object]:
    """The chunk that ends a choice; sent once its answer is kept, where it is to be kept."""
    return _chunk(head, index, {}, None, finish_reason, node)


def usage_chunk(head: ReplyHead, usage: TokenUsage) -> dict[str, object]:
    """The last chunk, where `stream_options.include_usage` asked for it."""
    return {**_head(head, "chat.completion.chunk"), "choices": [], "usage": usage_object(usage)}


def _chunk(
    head: ReplyHead,
    index: int,
    delta: Mapping[str, object],
    logprobs: Logprobs | None,
    finish_reason: str | None,
    node: tuple[str, str, int] | None = None,
) -> dict[str, object]:
    choice = {
        "index": index,
        "delta": dict(delta),
        "logprobs": None if logprobs is None else {"content": list(logprobs), "refusal": None},
        "finish_reason": finish_reason,
        **_node(node),
    }
    return {**_head(head, "chat.completion.chunk"), "choices": [choice]}


def _head(head: ReplyHead, kind: str) -> dict[str, object]:
    return {
        "id": head.completion_id,
        "object": kind,
        "created": head.created_s,
        "model": head.model,
        "system_fingerprint": head.fingerprint,
    }


def _node(node: tuple[str, str, int] | None) -> dict[str, object]:
    """Our one extension of a choice: where in the tree the answer is."""
    return {} if node is None else {"katsura": {"session_id": node[0], "branch": node[1], "node_id": node[2]}}
