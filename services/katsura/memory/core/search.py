"""Lexical search: which texts of a node count, and what is shown of a hit. The case of ASCII letters never matters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from katsura.domain.trees import Body, Hint, Slot, Step, Summary

WORDS_MAX: Final = 16
_EXCERPT_CHARS: Final = 160
_BEFORE_CHARS: Final = 40
_LOWER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def lower(text: str) -> str:
    """`text` with ASCII letters in lower case and everything else as it is, so that all stores agree."""
    return text.translate(_LOWER)


def words_of(query: str) -> tuple[str, ...]:
    """Different words of a query, at most WORDS_MAX."""
    return tuple(dict.fromkeys(lower(query).split()))[:WORDS_MAX]


def says(body: Body, words: Sequence[str]) -> bool:
    """Whether the texts of a node hold every word, anywhere."""
    text = lower("\n".join(texts_of(body)))
    return all(word in text for word in words)


def excerpt_around(body: Body, words: Sequence[str]) -> str:
    """The text around the first word, on one line."""
    text = " ".join(" ".join(texts_of(body)).split())
    found = [at for word in words if (at := lower(text).find(word)) >= 0]
    start = max(0, min(found, default=0) - _BEFORE_CHARS)
    part = text[start : start + _EXCERPT_CHARS]
    return ("… " if start else "") + part + (" …" if start + _EXCERPT_CHARS < len(text) else "")


def texts_of(body: Body) -> Iterator[str]:
    """The texts of a node that words are looked for in."""
    match body:
        case Step():
            yield body.content
            if body.tool_call is not None:
                yield from (body.tool_call.name, body.tool_call.arguments_json)
            yield from body.attributes.values()
        case Summary():
            said = body.body
            yield said.text
            for items in (said.facts, said.decisions, said.open_obligations, said.artifacts):
                yield from items
        case Hint():
            yield from (body.reason, body.first_action, *(effect.excerpt for effect in body.standing))
        case Slot():
            yield from (body.key, body.value, body.note)
