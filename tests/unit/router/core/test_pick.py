from collections import Counter

import pytest

from katsura.domain.errors import Reason, UnavailableError
from katsura.domain.ids import InstanceId
from katsura.router.core.pick import pick, rendezvous
from katsura.router.core.score import Ask, Score


def ask(branch: str = "main") -> Ask:
    return Ask(prompt_tokens=100, max_new_tokens=10, branch_key=branch)


def scored(name: str, cost_s: float, matched: int = 0, why_not: str = "", affinity_s: float = 0.0) -> Score:
    warm = matched > 0 or affinity_s > 0
    return Score(InstanceId(name), 0.0, cost_s + affinity_s, 0.0, affinity_s, matched, warm, why_not)


def test_the_cheapest_shard_is_chosen_where_one_is_warm() -> None:
    found = pick(
        [scored("a", 0.3), scored("b", 0.1, 64), scored("c", 0.2), scored("d", 0.0, why_not="is draining")], ask()
    )
    assert [s.shard_id for s in found.scores] == ["b", "c", "a", "d"]
    assert found.reason == "b holds 64 of 100 prompt tokens and should answer in 100 ms; c would need 200 ms."


def test_a_warm_but_crowded_shard_loses_to_a_cheaper_cold_one() -> None:
    assert pick([scored("a", 0.9, 64), scored("b", 0.2)], ask()).chosen.shard_id == "b"


def test_the_programs_own_shard_is_named_as_such() -> None:
    found = pick([scored("a", 0.1, affinity_s=0.2), scored("b", 0.3)], ask())
    assert "the program's own shard" in found.reason


def test_the_only_shard_that_can_is_said_to_be_the_only_one() -> None:
    found = pick([scored("a", 0.1), scored("b", 0.0, why_not="is draining")], ask())
    assert found.reason == "a is the only shard that can take the request."


def test_cold_siblings_meet_and_branches_spread_over_the_lightest() -> None:
    scores = [scored("a", 0.50), scored("b", 0.50), scored("c", 0.51), scored("d", 0.52), scored("e", 2.0)]
    assert len({pick(scores, ask("x")).chosen.shard_id for _ in range(5)}) == 1
    where = Counter(pick(scores, ask(f"branch-{n}")).chosen.shard_id for n in range(300))
    assert set(where) == {"a", "b", "c"}
    assert min(where.values()) > 60
    assert "the branch's name chose" in pick(scores, ask("x")).reason


def test_a_cold_prefix_never_goes_to_a_much_heavier_shard() -> None:
    scores = [scored("a", 0.5), scored("b", 0.7)]
    assert {pick(scores, ask(f"branch-{n}")).chosen.shard_id for n in range(50)} == {"a"}


def test_equal_costs_are_told_apart_by_the_branch_not_by_the_name_of_the_shard() -> None:
    scores = [scored("a", 0.5, 16), scored("b", 0.5, 16)]
    assert {pick(scores, ask(f"branch-{n}")).chosen.shard_id for n in range(50)} == {"a", "b"}


def test_where_nobody_can_the_reason_of_each_is_told() -> None:
    with pytest.raises(UnavailableError) as refused:
        pick([scored("a", 0.1, why_not="is draining"), scored("b", 0.1, why_not="is not ready: loading")], ask())
    assert refused.value.reason is Reason.NO_SHARD
    assert refused.value.message == "no shard can take the request: a is draining; b is not ready: loading"
    with pytest.raises(UnavailableError, match="no shard of this revision is registered"):
        pick([], ask())


def test_losing_a_shard_moves_only_its_own_branches() -> None:
    names = [InstanceId(name) for name in "abcd"]
    branches = [f"b{n}" for n in range(100)]
    before = {b: max(names, key=lambda s: rendezvous(b, s)) for b in branches}
    after = {b: max(names[:3], key=lambda s: rendezvous(b, s)) for b in branches}
    assert all(after[b] == before[b] for b in branches if before[b] != "d")
