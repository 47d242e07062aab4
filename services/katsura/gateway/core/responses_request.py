"""What `POST /v1/responses` asks for. The rules for fields are those of `chat_request`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from katsura.domain.errors import Reason
from katsura.gateway.core.chat_request import (
    MESSAGES_MAX,
    Message,
    read_content,
    read_metadata,
    refuse_tools,
)
from katsura.gateway.core.fields import Fields, Json, kind_of, refuse, text_of
from katsura.gateway.core.sampling_request import TOKENS_MAX, TOP_LOGPROBS_MAX, Sampling, read_sampling

HARMLESS = (
    "access_programs",
    "max_tool_calls",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "user",
)
_LOGPROBS = "message.output_text.logprobs"
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """A response as asked for.

    Attributes:
        messages: the new input items.
        instructions: a system text of this call alone: it leads the prompt and is never kept.
        previous_response_id: the response that this one continues.
        store: whether the turn is kept in a tree.
    """

    model: str
    messages: tuple[Message, ...]
    instructions: str | None = None
    previous_response_id: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int | None = None
    store: bool = True
    stream: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_responses_request(value: Json) -> ResponsesRequest:
    """Read a body.

    Raises:
        InvalidArgumentError: `field` is the path of the first field that is wrong.
    """
    body = Fields(value)
    store = body.flag("store")
    request = ResponsesRequest(
        model=body.required("model", body.text("model", low=1, high=256)),
        messages=_read_input(body),
        instructions=body.text("instructions"),
        previous_response_id=body.text("previous_response_id", low=1, high=256),
        sampling=read_sampling(body, _top_logprobs(body)),
        max_new_tokens=body.integer("max_output_tokens", 1, TOKENS_MAX),
        store=True if store is None else store,
        stream=bool(body.flag("stream")),
        metadata=read_metadata(body),
    )
    _refuse_what_we_cannot(body)
    body.finish(HARMLESS)
    return request


def _refuse_what_we_cannot(body: Fields) -> None:
    refuse_tools(body)
    _read_text_options(body.object("text"))
    body.neutral("background", False, why="background responses are not supported; use stream: true")
    body.neutral("background_options", {}, why="background responses are not supported")
    body.neutral("context_management", [], why="the tree's policy decides what is compressed")
    body.neutral("conversation", why="continue by previous_response_id, or name a session by x-session-id")
    body.neutral("prompt", why="stored prompt templates are not supported")
    body.neutral("reasoning", {}, {"effort": "none"}, why="the served model does not reason separately")
    body.neutral("image", why="images are not supported")
    body.neutral("truncation", "disabled", why="only 'disabled' is supported; a kept session compresses by its tree")
    options = body.object("stream_options")
    if options is not None:
        options.finish(("include_obfuscation",))


def _read_text_options(options: Fields | None) -> None:
    if options is None:
        return
    options.neutral("format", {"type": "text"}, why="answers are not constrained to a grammar or schema")
    options.neutral("verbosity", "medium", why="the served model has no verbosity setting")
    options.finish()


def _read_input(body: Fields) -> tuple[Message, ...]:
    value = body.required("input", body.take("input"))
    if isinstance(value, str):
        return (Message("user", text_of(value, "input")),)
    if not isinstance(value, list):
        refuse("input", f"expected a string or an array of items, got {kind_of(value)}")
    if not 1 <= len(value) <= MESSAGES_MAX:
        refuse("input", f"expected 1 to {MESSAGES_MAX} items, got {len(value)}")
    return tuple(_read_item(item, f"input[{index}]") for index, item in enumerate(value))


def _read_item(value: Json, path: str) -> Message:
    item = Fields(value, path)
    kind = item.text("type") or "message"
    if kind != "message":
        refuse(item.path("type"), f"expected 'message', got {kind!r}", Reason.UNSUPPORTED_FIELD)
    role = item.required("role", item.text("role"))
    if role not in _ROLES:
        refuse(item.path("role"), f"expected one of {', '.join(_ROLES)}, got {role!r}")
    kinds = ("output_text", "text") if role == "assistant" else ("input_text", "text")
    content = item.required("content", read_content(item.take("content"), item.path("content"), kinds))
    item.finish(("id", "phase", "status"))
    return Message(_ROLES[role], content)


def _top_logprobs(body: Fields) -> int:
    def known(value: Json, path: str) -> str:
        name = text_of(value, path)
        if name != _LOGPROBS:
            refuse(path, f"only {_LOGPROBS!r} can be included, got {name!r}", Reason.UNSUPPORTED_FIELD)
        return name

    included = body.items("include", known, high=16) or ()
    count = body.integer("top_logprobs", 0, TOP_LOGPROBS_MAX)
    if count is None:
        return 0 if _LOGPROBS in included else -1
    return count
