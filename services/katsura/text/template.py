"""Chat templates: messages to the text a model was trained on.

Templates come with models and are not trusted: jinja2's immutable sandbox, plain data only, bounded output. The
environment is the one that Hugging Face templates are written for (`raise_exception`, `strftime_now`, `tojson` that
leaves HTML alone, `{% generation %}`, loop controls).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import meta
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from katsura.domain.errors import (
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    Reason,
)
from katsura.domain.units import MIB
from katsura.text.tokenizer import Tokenizer, read_json

Message = Mapping[str, Any]
"""One chat message as plain JSON data: `role`, `content` and what a template may read besides."""

MAX_RENDERED_CHARS = 16 * MIB
_RENDER_FAULTS = (
    jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError
)  # fmt: skip


class ChatTemplate:
    """One model's template, compiled once; safe to share between threads.

    Attributes:
        supports_tools: the template reads `tools`; where it does not, a request with tools must be refused.
    """

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        *,
        now: Callable[[], datetime] = datetime.now,
        max_chars: int = MAX_RENDERED_CHARS,
    ) -> None:
        environment = _environment(now)
        try:
            self._template = environment.from_string(source)
            self.supports_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            raise DataLossError(f"the model's chat template cannot be compiled: {error}") from error
        self._special = dict(tokenizer.special_tokens)
        self._boundaries = tokenizer.boundaries
        self._cuts_after = tokenizer.is_byte_level
        self._max_chars = max_chars

    @classmethod
    def from_folder(cls, folder: Path, tokenizer: Tokenizer) -> ChatTemplate:
        """The template of a model folder: chat_template.jinja, or `chat_template` of tokenizer_config.json.

        Raises:
            NotFoundError: there is none; the model takes token ids or plain text only.
        """
        own = folder / "chat_template.jinja"
        source = own.read_text(encoding="utf-8") if own.is_file() else None
        source = source or _default(read_json(folder / "tokenizer_config.json").get("chat_template"))
        if source is None:
            raise NotFoundError(
                f"{folder} has no chat template, so it cannot serve chat; use an instruction-tuned model",
                reason=Reason.WEIGHTS_UNAVAILABLE,
            )
        return cls(source, tokenizer)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The whole prompt as text.

        Raises:
            InvalidArgumentError: the template refuses the messages (`field` is `messages`), or it cannot show
                `tools` (`field` is `tools`).
            OutOfRangeError: the text is longer than `max_chars`.
        """
        if tools and not self.supports_tools:
            raise InvalidArgumentError(
                "tools: this model's chat template cannot show tools to the model; leave the field out or choose "
                "another model",
                reason=Reason.UNSUPPORTED_FIELD,
                field="tools",
            )
        data = {"messages": _plain(messages, "messages"), "tools": _plain(tools, "tools") if tools else None}
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(self._special, **data, add_generation_prompt=add_generation_prompt):
                parts.append(part)
                size += len(part)
                if size > self._max_chars:
                    raise OutOfRangeError(
                        f"messages: the rendered conversation is longer than {self._max_chars} characters",
                        field="messages",
                    )
        except _RENDER_FAULTS as error:
            raise InvalidArgumentError(
                f"messages: this model's chat template refuses the conversation: {error}", field="messages"
            ) from error
        return "".join(parts)

    def render_segments(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[str]:
        """The prompt in pieces: `[preamble, one per message, generation prompt]`, so `len(messages) + 2` of them.

        Joined they are `render`'s text, and the ids of each alone, one after the other, are the ids of the whole.
        The preamble is what the template puts before the first message (SmolLM2: a default system message). Where
        the template leaves no safe place to cut, a piece is empty and its text begins the next one.
        """
        whole = self.render(messages, add_generation_prompt=add_generation_prompt, tools=tools)
        pieces = self._pieces(list(messages), whole, tools)
        return self._joined_where_unsafe(pieces)

    def _pieces(self, messages: list[Message], whole: str, tools: Sequence[Mapping[str, Any]] | None) -> list[str]:
        """Cut `whole` by messages, wherever the template allows it; empty pieces where it does not."""
        ends = self._ends_by_pairs(messages, whole, tools) or self._ends_by_prefixes(messages, whole, tools)
        begin = self._preamble_end(messages, whole, ends, tools)
        cuts = [0, begin, *ends, len(whole)]
        return [whole[a:b] for a, b in itertools.pairwise(cuts)]

    def _ends_by_pairs(
        self, messages: list[Message], whole: str, tools: Sequence[Mapping[str, Any]] | None
    ) -> list[int] | None:
        """Where each message ends in `whole`, from what it adds to its predecessor alone: linear, but only right
        for templates that treat a message by its neighbour at most; `None` where the result is not `whole`."""
        ends: list[int] = []
        end = 0
        for index in range(len(messages)):
            before = self._shown(messages[index - 1 : index], tools) if index else ""
            with_it = self._shown(messages[max(index - 1, 0) : index + 1], tools)
            if before is None or with_it is None or not with_it.startswith(before):
                return None
            added = with_it[len(before) :]
            if not whole.startswith(added, end):
                return None
            end += len(added)
            ends.append(end)
        return ends

    def _ends_by_prefixes(
        self, messages: list[Message], whole: str, tools: Sequence[Mapping[str, Any]] | None
    ) -> list[int]:
        """Where each message ends in `whole`, from renderings of every prefix: quadratic, for any template."""
        ends: list[int] = []
        end = 0
        for count in range(1, len(messages) + 1):
            shown = self._shown(messages[:count], tools)
            if shown is not None and len(shown) >= end and whole.startswith(shown):
                end = len(shown)
            ends.append(end)
        return ends

    def _preamble_end(
        self, messages: list[Message], whole: str, ends: list[int], tools: Sequence[Mapping[str, Any]] | None
    ) -> int:
        """Where the first message begins: the first message twice shows what of it is there once only."""
        if not messages:
            return 0
        first, once = whole[: ends[0]], self._shown(messages[:1], tools)
        twice = self._shown([messages[0], messages[0]], tools)
        if once is None or twice is None or once != first or not twice.startswith(once):
            return 0
        again = twice[len(once) :]
        return len(first) - len(again) if again and first.endswith(again) else 0

    def _shown(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> str | None:
        try:
            return self.render(messages, add_generation_prompt=False, tools=tools)
        except InvalidArgumentError:
            return None  # e.g. a template that wants roles to alternate, shown a part of the conversation

    def _joined_where_unsafe(self, pieces: list[str]) -> list[str]:
        """Move a piece into its successor unless the cut between them stands beside a special token.

        Tokenizers split at special tokens before all else, so nothing merges across such a cut.
        """
        safe: list[str] = []
        carried = ""
        for index, piece in enumerate(pieces):
            text = carried + piece
            following = next(filter(None, pieces[index + 1 :]), None)
            beside = self._cuts_after and text.endswith(self._boundaries)
            safe_here = following is None or beside or following.startswith(self._boundaries)
            carried = "" if safe_here else text
            safe.append(text if safe_here else "")
        return safe


def _plain(value: object, field: str) -> Any:
    """A copy of `value` in JSON's own types: an object with methods would be a door out of the sandbox."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{field}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item, f"{field}[{index}]") for index, item in enumerate(value)]
    raise InvalidArgumentError(f"{field} is a {type(value).__name__}; messages are plain JSON data", field=field)


def _default(template: object) -> str | None:
    """Published either as text or as a list of named templates."""
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks the model's own words for training; here it shows its body."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> Node:
        """Parse the block into a call that returns its body unchanged."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with a bound on what one `*` or `**` may make."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right` unless the result would be huge."""
        sizes = [len(v) if isinstance(v, str | list | tuple) else abs(v) for v in (left, right)]
        if operator == "**" or sizes[0] * sizes[1] > MAX_RENDERED_CHARS:
            raise SecurityError(f"{operator} makes too large a value")
        return super().call_binop(context, operator, left, right)


def _environment(now: Callable[[], datetime]) -> jinja2.Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: now().strftime(layout)
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
