"""What `POST /v1/responses` answers: the response object, and the events of its stream in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from katsura.gateway.core.chat_reply import TokenUsage
from katsura.gateway.core.responses_request import ResponsesRequest

Event = tuple[str, dict[str, object]]
"""Type of an event and its data."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What is known of a response before its first token; `created_s` counts seconds since the Unix epoch."""

    response_id: str
    item_id: str
    created_s: int
    model: str
    request: ResponsesRequest


def skeleton(head: ResponseHead) -> dict[str, object]:
    """The response as it begins: no output, no usage."""
    request = head.request
    return {
        "id": head.response_id,
        "object": "response",
        "created_at": head.created_s,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_new_tokens,
        "metadata": dict(request.metadata),
        "model": head.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": request.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "store": request.store,
        "temperature": request.sampling.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": max(request.sampling.top_logprobs, 0),
        "top_p": request.sampling.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def finished(
    head: ResponseHead,
    text: str,
    finish_reason: str,
    logprobs: Sequence[Mapping[str, object]] | None,
    usage: TokenUsage,
) -> dict[str, object]:
    """The response as it ends: `completed`, or `incomplete` where its tokens ran out."""
    whole = finish_reason == "stop"
    status = "completed" if whole else "incomplete"
    return skeleton(head) | {
        "status": status,
        "incomplete_details": None if whole else {"reason": "max_output_tokens"},
        "output": [message_item(head.item_id, text, status, logprobs)],
        "usage": usage_object(usage),
    }


def usage_object(usage: TokenUsage) -> dict[str, object]:
    """OpenAI's `usage` of a response."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def message_item(
    item_id: str, text: str, status: str, logprobs: Sequence[Mapping[str, object]] | None
) -> dict[str, object]:
    """The one output item: the assistant's message."""
    content = [_text_part(text, logprobs)]
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def without_text(response: Mapping[str, object]) -> dict[str, object]:
    """`response` as it is kept: its text is in the tree, and only there."""
    return {**response, "output": []}


def with_text(kept: Mapping[str, object], item_id: str, text: str) -> dict[str, object]:
    """A kept response with its text put back."""
    return {**kept, "output": [message_item(item_id, text, str(kept["status"]), None)]}


class Events:
    """The events of one stream, numbered."""

    def __init__(self, head: ResponseHead) -> None:
        self._head = head
        self._count = 0

    def opening(self) -> list[Event]:
        """What comes before the first token."""
        item = message_item(self._head.item_id, "", "in_progress", None) | {"content": []}
        return [
            self._event("response.created", response=skeleton(self._head)),
            self._event("response.in_progress", response=skeleton(self._head)),
            self._event("response.output_item.added", output_index=0, item=item),
            self._event("response.content_part.added", **self._place(), part=_text_part("", None)),
        ]

    def delta(self, text: str, logprobs: Sequence[Mapping[str, object]] | None) -> Event:
        """A piece of text."""
        return self._event("response.output_text.delta", **self._place(), delta=text, logprobs=list(logprobs or []))

    def closing(
        self, response: Mapping[str, object], text: str, logprobs: Sequence[Mapping[str, object]] | None
    ) -> list[Event]:
        """What comes after the last token; `response` is the finished one."""
        status = str(response["status"])
        item = message_item(self._head.item_id, text, status, logprobs)
        return [
            self._event("response.output_text.done", **self._place(), text=text, logprobs=list(logprobs or [])),
            self._event("response.content_part.done", **self._place(), part=_text_part(text, logprobs)),
            self._event("response.output_item.done", output_index=0, item=item),
            self._event(f"response.{status}", response=dict(response)),
        ]

    def failure(self, message: str) -> Event:
        """The stream ends by an error."""
        told = {"code": "server_error", "message": message}
        return self._event("response.failed", response=skeleton(self._head) | {"status": "failed", "error": told})

    def _place(self) -> dict[str, object]:
        return {"item_id": self._head.item_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: object) -> Event:
        number, self._count = self._count, self._count + 1
        return kind, {"type": kind, "sequence_number": number, **fields}


def _text_part(text: str, logprobs: Sequence[Mapping[str, object]] | None) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs or [])}
