"""The pages of a KV arena: who holds each one, which are cached, which are blank.

    take         share                 publish
    blank ----> held, refs 1 ----> held, refs n ----> held and published (immutable)
      ^            | release to 0                        | release to 0      ^
      |            v                                     v                   | share (a prefix match)
      +---------- blank                               cached ----------------+
      +------------------------------------------------ | evict (oldest first)

The cached pages are the free list and the prefix cache at once. Chains are released from their tail, so a page is
always evicted before the page that it follows.
"""

from __future__ import annotations

from collections.abc import Iterable

RUN_PAGES = 8
"""Blank neighbours that a new run asks for beyond its need, so that it can grow in place."""


class PagePool:
    """Reference counts and the free list of `page_count` pages."""

    def __init__(self, page_count: int) -> None:
        self.page_count = page_count
        self._refs = [0] * page_count
        self._published = bytearray(page_count)
        self._blank = bytearray(b"\1" * page_count)  # one byte a page: `find` looks for runs at memory speed
        self._blank_count = page_count
        self._cached: dict[int, None] = {}  # a dict keeps its order: the oldest page first

    @property
    def free_count(self) -> int:
        """Pages that no sequence holds, cached ones included."""
        return self._blank_count + len(self._cached)

    @property
    def cached_count(self) -> int:
        """Pages that no sequence holds but a prefix match may revive."""
        return len(self._cached)

    def refs(self, page: int) -> int:
        """Page-table entries that name `page`."""
        return self._refs[page]

    def is_writable(self, page: int) -> bool:
        """Whether its one holder may write into it: neither shared nor published."""
        return self._refs[page] == 1 and not self._published[page]

    def take(self, count: int, after: int = -1) -> tuple[list[int], list[int]]:
        """Hand out `count` pages, in one run where possible, right behind page `after` at best.

        Returns:
            The pages, each with one reference, and the cached pages that were evicted for them. The caller must have
            seen that `free_count` suffices.
        """
        evicted: list[int] = []
        while self._blank_count < count:
            page = next(iter(self._cached))
            del self._cached[page]
            self._published[page] = 0
            self._set_blank(page)
            evicted.append(page)
        taken: list[int] = []
        while len(taken) < count:
            after = self._next_blank(after, count - len(taken))
            self._blank[after] = 0
            self._blank_count -= 1
            self._refs[after] = 1
            taken.append(after)
        return taken, evicted

    def share(self, page: int) -> None:
        """Add a holder to a held or a cached page."""
        self._cached.pop(page, None)
        self._refs[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Take one holder away from each page, in the order given: hand chains over from their tail."""
        for page in pages:
            self._refs[page] -= 1
            if self._refs[page] == 0:
                if self._published[page]:
                    self._cached[page] = None
                else:
                    self._set_blank(page)

    def publish(self, page: int) -> None:
        """From now on `page` is immutable, and stays as a cached page when nobody holds it."""
        self._published[page] = 1

    def unpublish(self, page: int) -> None:
        """Take `page` out of the cache; it is blank at once, or when its last holder lets go."""
        self._published[page] = 0
        if page in self._cached:
            del self._cached[page]
            self._set_blank(page)

    def _set_blank(self, page: int) -> None:
        self._blank[page] = 1
        self._blank_count += 1

    def _next_blank(self, after: int, want: int) -> int:
        if 0 <= after < self.page_count - 1 and self._blank[after + 1]:
            return after + 1
        for run in (want + RUN_PAGES, want, 2, 1):
            start = self._blank.find(b"\1" * run)
            if start >= 0:
                return start
        raise AssertionError("take() was asked for more pages than are free")
