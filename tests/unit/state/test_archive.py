"""What an archive's digests cover."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from katsura.domain.ids import BranchName, NodeId
from katsura.domain.trees import Branch, BranchState
from katsura.state.archive import root_digest

MAIN = Branch(
    BranchName("main"), BranchState.ACTIVE, NodeId(3), NodeId(0), NodeId(0), NodeId(0), "", 3, 10, NodeId(0), 0, 1, 1
)


@pytest.mark.parametrize(
    "changed",
    [
        {"name": BranchName("other")},
        {"state": BranchState.FROZEN},
        {"head": NodeId(2)},
        {"summary_head": NodeId(4)},
        {"hint": NodeId(5)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_the_root_digest_covers_what_each_branch_points_to(changed: dict[str, Any]) -> None:
    hashes = [bytes(32), b"a" * 32]
    side = replace(MAIN, name=BranchName("side"), order=2)
    whole = root_digest(hashes, [MAIN, side])
    assert whole == root_digest(hashes, [side, MAIN])
    assert whole != root_digest(hashes, [replace(MAIN, **changed), side])
    assert whole != root_digest(hashes[::-1], [MAIN, side])
