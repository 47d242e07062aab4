"""Writes that wait for the checkpoint after theirs are taken once, given back once, and wait in vain more rarely."""

from __future__ import annotations

from katsura.adapters.checkpoints import Key
from katsura.adapters.company import Company, Offer
from katsura.api.memory.v1 import memory_pb2 as tree_pb

KEY = Key("thread", "")


def offered(company: Company, task: str = "t", place: str = "c1", key: Key = KEY) -> Offer:
    made = company.offer(key, place, [tree_pb.Attachment(task=task)])
    assert made is not None
    return made


def test_the_checkpoint_that_comes_takes_what_waits_for_it_and_nothing_else() -> None:
    company = Company()
    first, other, second = offered(company, "a"), offered(company, place="c2"), offered(company, "b")
    assert company.take(KEY, "c1") == [first, second]
    assert company.take(KEY, "c1") == []
    assert company.take(Key("another", ""), "c2") == []
    assert not company.withdraw(first)
    assert company.withdraw(other)
    assert not company.withdraw(other)
    assert company.take(KEY, "c2") == []


def test_more_than_one_call_may_carry_are_told_to_go_alone() -> None:
    company = Company()
    offers = [offered(company, str(number)) for number in range(70)]
    assert company.take(KEY, "c1") == offers[:64]
    assert [each.stored.result(0) for each in offers[64:]] == [False] * 6
    assert not any(each.stored.done() for each in offers[:64])


def test_waiting_in_vain_makes_waiting_rarer_until_somebody_comes() -> None:
    company = Company()
    rests = []
    for _ in range(10):
        assert company.withdraw(offered(company))
        rests.append(0)
        while (made := company.offer(KEY, "c1", [])) is None:
            rests[-1] += 1
        assert company.withdraw(made)
        while company.offer(KEY, "c1", []) is None:
            rests[-1] += 1
        assert len(company.take(KEY, "c1")) == 1  # ends it
    assert rests == [2 + 4] * 10
    for _ in range(12):
        while (made := company.offer(KEY, "c1", [])) is None:
            rests[-1] += 1
        assert company.withdraw(made)
    assert rests[-1] == 6 + sum(min(2**n, 256) for n in range(1, 12))
    offered(company, key=Key("another", ""))  # it is another's patience
