"""Cold trees: their nodes wait in an object, and come back when anybody touches them.

`TreeStore` (trees.py) includes `TreeCold`. Every operation brings a cold tree back first; only `trees` tells of it
without. A tree that comes back is what it was, less what archives leave out (token ids, answers to repeated requests,
past events): its revision goes up by one and Watch goes on from there.
"""

from __future__ import annotations

from typing import Protocol

from katsura.state.contents import TreeRef


class TreeCold(Protocol):
    """The part of a tree store that moves trees out and back."""

    async def freeze(self, ref: TreeRef) -> bool:
        """Move a tree into an object; False where it changed meanwhile, has tasks or a time to live, and stays.

        Raises:
            FailedPreconditionError: COLD_UNAVAILABLE, there is no place for objects.
        """
        ...
