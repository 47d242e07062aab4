"""What the suites of memory-tree stores share: a tree to begin with, and the operations in their shortest form."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable
from dataclasses import replace

from katsura.domain.errors import (
    KatsuraError,
    Reason,
)
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import (
    Hint,
    Judgement,
    Request,
    Step,
    Summary,
    SummaryBody,
    SummaryStatus,
    TreePolicy,
    cover_digest,
)
from katsura.state.trees import Grown, Limits, NewStep, NewTree, Revised, TreeRef, TreeStore, Written

LIMITS = Limits(events=100, replays=8)
"""Small enough to be passed in a test."""
NEW = NewTree("find the cheapest hotel", ("never pay twice",), TreePolicy(raw_token_limit=50), {"team": "a"})
"""The tree to begin with."""
NO_REQUEST = Request("", "")
"""Never remembered."""
BIG = 1 << 30
"""More than anything here."""
_counter = itertools.count()


def new_ref() -> TreeRef:
    """A tree of a tenant that no other test knows."""
    return TreeRef(TenantId(f"tenant{next(_counter)}"), TreeId("tree"))


def step(content: str, **fields: object) -> NewStep:
    """A message of 10 tokens."""
    return NewStep(replace(Step(content), **fields), tokens=10)  # type: ignore[arg-type]


async def grow(store: TreeStore, ref: TreeRef, *contents: str, branch: str = "", merge: bool = True) -> Grown:
    """Append messages wherever the head is."""
    return await store.grow(ref, branch, None, [step(c) for c in contents], merge, NO_REQUEST)


async def compress(
    store: TreeStore, ref: TreeRef, status: SummaryStatus = SummaryStatus.VALID, last: int = 0, branch: str = ""
) -> Written:
    """Write a summary of what is raw up to `last`."""
    cover = await store.cover(ref, branch, None, last)
    page = await store.path(ref, branch, cover.last, 1000, BIG)
    covered = page.nodes[-cover.count :]
    digest = cover_digest([n.content_hash for n in covered])
    body = SummaryBody("done", facts=("a",), open_obligations=("pay",))
    summary = Summary(
        0, covered[0].node_id, cover.last, cover.count, digest, body, "test", cover.versions + 1, cover.tokens, 4
    )
    return await store.summarise(ref, cover, None, summary, Judgement(status=status), NO_REQUEST)


async def revise(store: TreeStore, ref: TreeRef, restore: int, request: Request = NO_REQUEST) -> Revised:
    """Go back on a new branch."""
    retreat = await store.retreat(ref, "", None, restore)
    left = retreat.branch
    hint = Hint(left.name, left.head, retreat.restore_after, "wrong", "x", retreat.previous_hint, retreat.effects)
    return await store.revise(ref, retreat, hint, 5, "", True, request)


async def contents(store: TreeStore, ref: TreeRef, branch: str = "") -> list[str]:
    """What the steps of a branch say."""
    page = await store.path(ref, branch, 0, 1000, BIG)
    return [n.body.content for n in page.nodes if isinstance(n.body, Step)]


async def refused(kind: type[KatsuraError], reason: Reason, attempt: Awaitable[object]) -> KatsuraError:
    """Await `attempt` and return its error, of this kind and reason."""
    try:
        await attempt
    except kind as error:
        if error.reason is reason:
            return error
        raise
    raise AssertionError(f"expected {kind.__name__} / {reason}")
