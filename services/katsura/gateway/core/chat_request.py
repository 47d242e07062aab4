"""What `POST /v1/chat/completions` asks for, checked and named exactly.

Every field is one of four: honoured; refused with 400 unless it asks for nothing (`tools: []`); harmless, because it
cannot change an answer here; or unknown, and then refused. Nothing that would change an answer is dropped silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from katsura.domain.errors import Reason
from katsura.gateway.core.fields import Fields, Json, kind_of, refuse, text_of
from katsura.gateway.core.sampling_request import (
    CHOICES_MAX,
    STOP_CHARS_MAX,
    STOP_MAX,
    TOKENS_MAX,
    TOP_LOGPROBS_MAX,
    Sampling,
    read_sampling,
)

MESSAGES_MAX = 4096
SESSION_KEY = "session_id"
BRANCH_KEY = "session_branch"

NO_TOOLS = "the served model's chat template knows no tools; remove the field or send it empty"
NO_FORMAT = "only {'type': 'text'} is supported: answers are not constrained to a grammar or schema"
HARMLESS = (
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Message:
    """One message: `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion as asked for.

    Attributes:
        max_new_tokens: None takes what the context leaves.
        metadata: the client's; `session_id` and `session_branch` in it name the session like the headers do.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    choice_count: int = 1
    stream: bool = False
    include_usage: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_chat_request(value: Json) -> ChatRequest:
    """Read a body.

    Raises:
        InvalidArgumentError: `field` is the path of the first field that is wrong.
    """
    body = Fields(value)
    model = body.required("model", body.text("model", low=1, high=256))
    messages = body.required("messages", body.items("messages", read_message, low=1, high=MESSAGES_MAX))
    stream = bool(body.flag("stream"))
    request = ChatRequest(
        model=model,
        messages=messages,
        sampling=read_sampling(body, _top_logprobs(body)),
        max_new_tokens=_max_new_tokens(body),
        stop=read_stop(body),
        choice_count=body.integer("n", 1, CHOICES_MAX) or 1,
        stream=stream,
        include_usage=_include_usage(body, stream),
        metadata=read_metadata(body),
    )
    _refuse_what_we_cannot(body)
    body.finish(HARMLESS)
    return request


def read_metadata(body: Fields) -> Mapping[str, str]:
    """Take `metadata` off `body`."""
    return body.texts("metadata", high=16, key_chars=64, value_chars=512)


def _refuse_what_we_cannot(body: Fields) -> None:
    refuse_tools(body)
    body.neutral("functions", [], why=NO_TOOLS)
    body.neutral("function_call", "none", "auto", why=NO_TOOLS)
    body.neutral("response_format", {"type": "text"}, why=NO_FORMAT)
    body.neutral("modalities", ["text"], why="only ['text'] is supported")
    body.neutral("audio", why="audio is not supported")
    body.neutral("prediction", why="predicted outputs are not supported")
    body.neutral("reasoning_effort", "none", why="the served model does not reason separately")
    body.neutral("verbosity", "medium", why="the served model has no verbosity setting")
    body.neutral("web_search_options", why="web search is not supported")


def refuse_tools(body: Fields) -> None:
    """Refuse `tools` and `tool_choice` unless they ask for nothing."""
    body.neutral("tools", [], why=NO_TOOLS)
    body.neutral("tool_choice", "none", "auto", why=NO_TOOLS)


def read_message(value: Json, path: str) -> Message:
    """Read one message; `path` is its place in the request."""
    fields = Fields(value, path)
    role = fields.required("role", fields.text("role"))
    if role not in _ROLES:
        reason = NO_TOOLS if role in ("tool", "function") else f"expected one of {', '.join(_ROLES)}, got {role!r}"
        refuse(fields.path("role"), reason)
    content = fields.required("content", read_content(fields.take("content"), fields.path("content")))
    fields.neutral("tool_calls", [], why=NO_TOOLS)
    fields.neutral("function_call", why=NO_TOOLS)
    fields.neutral("name", why="the served model's chat template shows no names")
    fields.neutral("audio", why="audio is not supported")
    fields.neutral("refusal", why="the served model's chat template shows no refusals")
    fields.finish(("annotations", "reasoning", "reasoning_content"))
    return Message(_ROLES[role], content)


def read_content(value: Json, path: str, kinds: tuple[str, ...] = ("text",)) -> str | None:
    """Text, or an array of text parts (joined by newlines) whose `type` is one of `kinds`."""
    if value is None or isinstance(value, str):
        return None if value is None else text_of(value, path)
    if not isinstance(value, list):
        refuse(path, f"expected a string or an array of parts, got {kind_of(value)}")
    texts = []
    for index, item in enumerate(value):
        part = Fields(item, f"{path}[{index}]")
        kind = part.required("type", part.text("type"))
        if kind not in kinds:
            refuse(part.path("type"), f"expected {' or '.join(kinds)}, got {kind!r}", Reason.UNSUPPORTED_FIELD)
        texts.append(part.required("text", part.text("text")))
        part.finish(("annotations", "logprobs"))
    return "\n".join(texts)


def read_stop(body: Fields) -> tuple[str, ...]:
    """Take `stop` off `body`: a string or an array of them."""
    value, path = body.take("stop"), body.path("stop")
    if value is None:
        return ()
    if isinstance(value, str):
        return (text_of(value, path, low=1, high=STOP_CHARS_MAX),)
    if not isinstance(value, list):
        refuse(path, f"expected a string or an array of strings, got {kind_of(value)}")
    if len(value) > STOP_MAX:
        refuse(path, f"expected at most {STOP_MAX} strings, got {len(value)}")
    return tuple(text_of(item, f"{path}[{index}]", low=1, high=STOP_CHARS_MAX) for index, item in enumerate(value))


def _max_new_tokens(body: Fields) -> int | None:
    old, new = body.integer("max_tokens", 1, TOKENS_MAX), body.integer("max_completion_tokens", 1, TOKENS_MAX)
    if old is not None and new is not None and old != new:
        refuse("max_tokens", "max_tokens and max_completion_tokens differ; send only max_completion_tokens")
    return new if old is None else old


def _top_logprobs(body: Fields) -> int:
    wanted, count = body.flag("logprobs"), body.integer("top_logprobs", 0, TOP_LOGPROBS_MAX)
    if count is not None and not wanted:
        refuse("top_logprobs", "needs logprobs: true")
    return (count or 0) if wanted else -1


def _include_usage(body: Fields, stream: bool) -> bool:
    options = body.object("stream_options")
    if options is None:
        return False
    if not stream:
        refuse("stream_options", "needs stream: true")
    wanted = bool(options.flag("include_usage"))
    options.finish(("include_obfuscation",))
    return wanted
