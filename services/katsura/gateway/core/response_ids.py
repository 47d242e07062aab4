"""Identities that the gateway gives out.

    resp_<tree>-<token>      a stored response: its tree and its record there
    resp_<token>             one that was not stored: nothing can be found by it

The caller hands in the random part; a tree made for responses begins with `r`.
"""

from __future__ import annotations

from katsura.domain.ids import TreeId

PREFIX = "resp_"
_SEPARATOR = "-"


def response_id(token: str, tree_id: TreeId | None) -> str:
    """Name a response; `token` is random, letters and digits only."""
    return f"{PREFIX}{tree_id}{_SEPARATOR}{token}" if tree_id else f"{PREFIX}{token}"


def parse_response_id(text: str) -> tuple[TreeId, str] | None:
    """Tree and token of a stored response, None for text that names none."""
    if not text.startswith(PREFIX):
        return None
    tree, found, token = text[len(PREFIX) :].rpartition(_SEPARATOR)
    return (TreeId(tree), token) if found and tree and token.isalnum() and token.isascii() else None


def tree_id_for_responses(token: str) -> TreeId:
    """Name of the tree that a first stored response begins."""
    return TreeId(f"r{token}")
