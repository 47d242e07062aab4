from dataclasses import replace

import pytest

from katsura.domain.ids import Incarnation, InstanceId
from katsura.domain.leases import ShardLoad
from katsura.router.core.ledger import InFlight
from katsura.router.core.score import Ask, Candidate, Score, score
from katsura.testing.fleet import shard_record

ASK = Ask(prompt_tokens=512, max_new_tokens=64, branch_key="main")


NOTHING = InFlight()


def shard(name: str, pages: int = 0, in_flight: InFlight = NOTHING, **load: float) -> Candidate:
    lease = shard_record(name)
    return Candidate(replace(lease, load=replace(lease.load, **load)), pages, in_flight)  # type: ignore[arg-type]


def parts(found: Score) -> tuple[float, float, float, float]:
    return found.wait_s, found.prefill_s, found.decode_s, found.affinity_s


# Shards measure 1000 tokens/s of prefill, 10 ms a step, pages of 16 tokens unless a row says otherwise.
@pytest.mark.parametrize(
    ("candidate", "wait", "prefill", "decode", "matched"),
    [
        (shard("a"), 0.0, 0.512, 0.0, 0),
        (shard("a", waiting_tokens=300), 0.3, 0.512, 0.0, 0),
        (shard("a", in_flight=InFlight(2, 200)), 0.2, 0.512, 0.0, 0),
        (shard("a", running=3), 0.0, 0.512, 0.02, 0),
        (shard("a", prefill_tokens_per_s=2000.0), 0.0, 0.256, 0.0, 0),
        # 36 pages are needed, 26 are free; 4 sequences fill one page each in 16 steps of 10 ms.
        (shard("a", free_pages=26, running=4), 0.4, 0.512, 0.02, 0),
        # A warm prefix of 10 pages needs 26 more pages.
        (shard("a", 10, free_pages=26, running=4), 0.0, 0.512, 0.02, 160),
    ],
)
def test_the_parts_of_a_cost(candidate: Candidate, wait: float, prefill: float, decode: float, matched: int) -> None:
    other = shard("z")  # holds nothing, so that nothing is hot
    found = score([candidate, other], ASK)[0]
    expected = (wait, prefill - matched / 1000, decode, 0.0)
    assert parts(found) == pytest.approx(expected)
    assert found.cost_s == pytest.approx(sum(expected))
    assert found.matched_tokens == matched


def test_a_match_stops_one_token_short_of_the_prompt() -> None:
    assert score([shard("a", 32), shard("b")], ASK)[0].matched_tokens == 31 * 16
    longer = replace(ASK, prompt_tokens=513)
    assert score([shard("a", 32), shard("b")], longer)[0].matched_tokens == 512


def test_pages_that_most_shards_hold_are_charged_to_nobody() -> None:
    found = score([shard("a", 20), shard("b", 10), shard("c")], ASK)
    assert [s.prefill_s for s in found] == pytest.approx([0.192, 0.352, 0.352])
    assert [s.warm for s in found] == [True, False, False]
    assert [s.matched_tokens for s in found] == [320, 160, 0]


def test_pages_that_half_of_the_shards_hold_are_not_hot() -> None:
    found = score([shard("a", 10), shard("b")], ASK)
    assert [s.prefill_s for s in found] == pytest.approx([0.352, 0.512])


def test_a_programs_own_shard_gets_its_unseen_tail_off_but_never_more_than_its_prefill() -> None:
    home = (InstanceId("a"), Incarnation(1))
    found = score([shard("a"), shard("b")], replace(ASK, home=home))
    assert [s.affinity_s for s in found] == pytest.approx([0.256, 0.0])
    assert [s.warm for s in found] == [True, False]
    found = score([shard("a", 30), shard("b")], replace(ASK, home=home))
    assert found[0].affinity_s == pytest.approx(found[0].prefill_s)


def test_another_life_of_the_programs_shard_is_no_home() -> None:
    found = score([shard("a"), shard("b")], replace(ASK, home=(InstanceId("a"), Incarnation(2))))
    assert not any(s.affinity_s or s.warm for s in found)


def test_a_shard_that_has_not_measured_itself_is_taken_for_a_usual_one() -> None:
    rates = (4000.0, 2000.0, 0.0)
    found = score([shard(name, prefill_tokens_per_s=rate) for name, rate in zip("abc", rates, strict=True)], ASK)
    assert [s.prefill_s for s in found] == pytest.approx([0.128, 0.256, 512 / 3000])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"draining": True}, "is draining"),
        ({"ready": False, "not_ready_reason": "loading"}, "is not ready: loading"),
        ({"ready": False}, "is not ready: it has not said why"),
        ({"load": ShardLoad(page_count=35, free_pages=35)}, "its 35 pages cannot hold the prompt and its answer"),
        ({}, ""),
    ],
)
def test_a_shard_that_cannot_be_chosen_says_why(change: dict[str, object], reason: str) -> None:
    lease = replace(shard_record("a"), **change)  # type: ignore[arg-type]
    assert score([Candidate(lease, 0, InFlight())], ASK)[0].excluded_reason == reason


def test_a_shard_that_just_failed_is_excluded() -> None:
    (found,) = score([shard("a")], replace(ASK, excluded=frozenset({InstanceId("a")})))
    assert found.excluded_reason == "just failed this request"


# Two shards: nobody may carry more than ceil(1.25 * (all + 1) / 2) + 4 requests with this one.
@pytest.mark.parametrize(("warm_load", "allowed"), [(0, True), (12, True), (13, False), (30, False)])
def test_bounded_load_stops_the_warm_shard_from_taking_everything(warm_load: int, allowed: bool) -> None:
    found = score([shard("a", 30, running=warm_load), shard("b")], ASK)
    assert (found[0].excluded_reason == "") is allowed
    assert found[1].excluded_reason == ""


def test_the_order_of_candidates_changes_nothing() -> None:
    some = [shard("c", 3, waiting_tokens=7), shard("a", 1, running=2), shard("b", 9)]
    assert score(some, ASK) == score(some[::-1], ASK)
    assert [s.shard_id for s in score(some, ASK)] == ["a", "b", "c"]
