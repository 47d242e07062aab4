"""The page tables of sequences over one pool: matching, growing, copying on write, publishing, letting go."""

from __future__ import annotations

from katsura.attention.core.events import EventLog
from katsura.attention.core.pages import PagePool
from katsura.attention.core.prefixes import PrefixIndex
from katsura.attention.core.sequence import Sequence

Copies = list[tuple[int, int]]
"""(source, target) pages to copy before the step, in order."""


class PageCache:
    """All pages of a shard. It moves references and names; the bytes are the arena's."""

    def __init__(self, page_count: int, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self.pool = PagePool(page_count)
        self.index = PrefixIndex()
        self.events = EventLog()

    def pages_for(self, tokens: int) -> int:
        """Pages that hold `tokens` tokens."""
        return -(-tokens // self.page_tokens)

    def matched(self, sequence: Sequence) -> list[int]:
        """Cached pages of the sequence's prefix: at most one token short of its end, so that one is computed."""
        return self.index.match(sequence.names(self.page_tokens, (len(sequence.tokens) - 1) // self.page_tokens))

    def missing(self, sequence: Sequence, length: int) -> int:
        """Pages to take so that positions `[computed, length)` can be written."""
        first = sequence.computed // self.page_tokens
        held = sequence.pages[first : self.pages_for(length)]
        replaced = sum(not self.pool.is_writable(page) for page in held)
        return replaced + max(0, self.pages_for(length) - len(sequence.pages))

    def adopt(self, sequence: Sequence, pages: list[int], length: int) -> None:
        """Let a sequence without pages begin with these, which hold its first `length` tokens."""
        for page in pages:
            self.pool.share(page)
        sequence.pages = list(pages)
        sequence.computed = length
        sequence.published = length // self.page_tokens

    def cover(self, sequence: Sequence, length: int) -> Copies:
        """Make positions `[computed, length)` writable; the caller has seen that `missing` pages are free.

        pages   [ shared | shared | own ]            P: published or shared
        slots   [PPPPPPPP|PPPPP...|      ] + new     the page at `computed` is copied if it holds older tokens,
                           ^ computed                any other such page is only replaced
        """
        copies: Copies = []
        first, slot = divmod(sequence.computed, self.page_tokens)
        end = self.pages_for(length)
        for i in range(first, min(end, len(sequence.pages))):
            old = sequence.pages[i]
            if not self.pool.is_writable(old):
                sequence.pages[i] = self._take(1, sequence.pages[i - 1] if i else -1)[0]
                if i == first and slot:
                    copies.append((old, sequence.pages[i]))
                self.pool.release((old,))
        missing = end - len(sequence.pages)
        if missing > 0:
            sequence.pages += self._take(missing, sequence.pages[-1] if sequence.pages else -1)
        return copies

    def publish(self, sequence: Sequence) -> None:
        """Name the pages that `computed` has filled; a page that somebody named first is used instead of ours."""
        full = sequence.computed // self.page_tokens
        if sequence.published >= full:
            return
        names = sequence.names(self.page_tokens, full)
        for i in range(sequence.published, full):
            parent = names[i - 1] if i else b""
            if parent and parent not in self.index:
                break  # what came before was dropped: nothing after it may be matched either
            page, known = sequence.pages[i], self.index.page_of(names[i])
            if known is None:
                self.index.insert(page, names[i], parent, sequence.owner.namespace)
                self.pool.publish(page)
                self.events.stored(names[i], parent)
            elif known != page:
                self.pool.share(known)
                self.pool.release((page,))
                sequence.pages[i] = known
        sequence.published = full

    def shorten(self, sequence: Sequence, length: int) -> None:
        """Cut a sequence back to `length` tokens and let go of the pages beyond."""
        sequence.cut(length, self.page_tokens)
        keep = self.pages_for(sequence.computed)
        self.pool.release(reversed(sequence.pages[keep:]))
        del sequence.pages[keep:]

    def let_go(self, sequence: Sequence) -> None:
        """Release all pages of a sequence; the published ones stay cached."""
        self.pool.release(reversed(sequence.pages))
        sequence.pages = []
        sequence.computed = sequence.published = 0

    def drop(self, pages: list[int]) -> int:
        """Take pages, and all that follow them, out of the index for good; returns how many there were."""
        before = len(self.index)
        for page in pages:
            for below in self.index.below(page):
                self.events.removed(self.index.remove(below))
                self.pool.unpublish(below)
        return before - len(self.index)

    def drop_named(self, names: list[bytes], namespace: bytes) -> int:
        """`drop` of the pages of one namespace that have these names."""
        found = [self.index.page_of(name) for name in names if self.index.namespace_of(name) == namespace]
        return self.drop([page for page in found if page is not None])

    def _take(self, count: int, after: int) -> list[int]:
        taken, evicted = self.pool.take(count, after)
        self.drop(evicted)
        return taken
