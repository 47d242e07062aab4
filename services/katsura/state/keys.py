"""Every key that Katsura writes: built and documented here and nowhere else.

A name that came from outside is encoded by `quoted`, so no tenant, tree or branch can forge another's key. Keys that
one function touches together share a hash tag `{...}`, so the function is atomic in a cluster too.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

STORE_INCARNATION: Final = "katsura:store:incarnation"
"""STRING, 16 hex digits, owner `state.connect`, no TTL. One life of the store's data: drawn once, survives restarts."""


def quoted(name: str) -> str:
    """`name` with everything but letters, digits and `_.-~` percent-encoded: safe between separators and braces."""
    return quote(name, safe="")
