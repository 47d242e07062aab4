"""A prompt from its parts: ids that a node carries are taken, the rest is tokenised part by part.

Templates separate messages by special tokens, so the ids of the parts, one after the other, are the ids of the whole.
Where a template leaves no place to cut, its pieces are empty and run into their successors: then everything is
tokenised anew and nothing is attached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from katsura.gateway.core.chat_request import Message


@dataclass(frozen=True, slots=True)
class Part:
    """One message of a prompt; `node_id` is 0 where no node shows it, `token_ids` empty where none are attached."""

    message: Message
    node_id: int = 0
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is fed to the model.

    Attributes:
        token_ids: all of it, the generation prompt included.
        opening: text of the generation prompt.
        to_attach: ids made here for nodes that carried none.
    """

    token_ids: tuple[int, ...]
    opening: str
    to_attach: Mapping[int, tuple[int, ...]]


def build(parts: Sequence[Part], pieces: Sequence[str], encode: Callable[[str], list[int]]) -> Prompt:
    """Build a prompt.

    Args:
        parts: the messages, in order.
        pieces: their renderings: the preamble, one per part, the generation prompt.
        encode: text to ids.
    """
    preamble, *shown, opening = pieces
    separable = all(shown) and bool(opening)
    token_ids = encode(preamble)
    to_attach: dict[int, tuple[int, ...]] = {}
    for part, piece in zip(parts, shown, strict=True):
        if separable and part.token_ids:
            token_ids.extend(part.token_ids)
            continue
        made = encode(piece)
        token_ids.extend(made)
        if separable and part.node_id:
            to_attach[part.node_id] = tuple(made)
    return Prompt(tuple(token_ids + encode(opening)), opening, to_attach)
