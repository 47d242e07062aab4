"""The shard's core against an oracle: whatever is forked, cut, evicted or cancelled, a token follows its own prefix.

`Machine` plays the arena: a page remembers which token was written into each slot. A draw is a hash of the tokens read
back through the page table, so a page that was overwritten, mixed up or freed too early changes what is drawn.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field
from hashlib import blake2b

from hypothesis import given, settings
from hypothesis import strategies as st

from katsura.attention.core.intake import Generate, Intake
from katsura.attention.core.plan import Drew, Ended, Failed, Finish, Opened, StepPlan
from katsura.attention.core.schedule import Limits
from katsura.attention.core.sequence import Owner, Phase, Program
from katsura.domain.errors import FailedPreconditionError, NotFoundError, OutOfRangeError, ResourceExhaustedError
from katsura.domain.ids import Incarnation
from katsura.domain.kv_events import KvRemoved, KvStored

VOCAB = 7
OWNERS = (Owner("a", b"a" * 32), Owner("b", b"b" * 32))


def next_token(tokens: list[int]) -> int:
    return blake2b(bytes(tokens), digest_size=2).digest()[0] % VOCAB


def answer(prompt: list[int], count: int, stop: frozenset[int], longest: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) - len(prompt) < count and len(tokens) < longest:
        tokens.append(next_token(tokens))
        if tokens[-1] in stop:
            break
    return tokens[len(prompt) :]


@dataclass
class Machine:
    limits: Limits
    clock: float = 0.0
    calls: int = 0
    drawn: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    expected: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    opened: dict[int, tuple[str, ...]] = field(default_factory=dict)
    open_tokens: dict[str, list[int]] = field(default_factory=dict)
    mirror: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.intake = Intake(self.limits)
        self.pages = [[-1] * self.limits.page_tokens for _ in range(self.limits.page_count)]

    def call(self) -> int:
        self.calls += 1
        return self.calls

    def execute(self, plan: StepPlan) -> dict[str, int]:
        assert plan.token_count <= self.limits.step_tokens
        size = self.limits.page_tokens
        for source, target in plan.copies:
            self.pages[target] = list(self.pages[source])
        written: set[tuple[int, int]] = set()
        for row in plan.rows:
            assert row.tokens, "the decoder computes at least one token of a sequence"
            for position, token in enumerate(row.tokens, row.start):
                place = (row.pages[position // size], position % size)
                assert place not in written, "two sequences write one slot"
                written.add(place)
                self.pages[place[0]][place[1]] = token
        draws = {}
        for row in plan.rows:
            length = row.start + len(row.tokens)
            read = [self.pages[row.pages[p // size]][p % size] for p in range(length)]
            assert read == self.intake.sequences[row.sequence_id].tokens[:length]
            if row.draws:
                draws[row.sequence_id] = next_token(read)
        return draws

    def step(self) -> bool:
        self.clock += 0.01
        plan = self.intake.schedule.plan(self.clock)
        if plan is not None:
            self.intake.schedule.commit(plan, self.execute(plan), self.clock)
        self.settle()
        return plan is not None

    def settle(self) -> None:
        for outcome in self.intake.take_outcomes(self.clock):
            match outcome:
                case Drew(call, choice, position, _, token, _):
                    answers = self.drawn.setdefault((call, choice), [])
                    assert position == len(answers)
                    answers.append(token)
                case Opened(call, views):
                    self.opened[call] = tuple(view.sequence_id for view in views)
                case Failed(call, error):
                    raise AssertionError(f"call {call}: {error.message}")
                case Ended(_, _, finish):
                    assert finish is Finish.EVICTED
        self.check()

    def check(self) -> None:
        cache, pool = self.intake.cache, self.intake.cache.pool
        held: dict[int, int] = {}
        for sequence in self.intake.sequences.values():
            for page in sequence.pages:
                held[page] = held.get(page, 0) + 1
            assert len(sequence.pages) >= cache.pages_for(sequence.computed)
            if sequence.phase is Phase.FORKING:
                assert not sequence.pages
        assert all(pool.refs(page) == held.get(page, 0) for page in range(pool.page_count))
        assert pool.free_count + len(held) == pool.page_count
        batch = cache.events.take(Incarnation(1))
        for event in batch.events if batch else ():
            match event:
                case KvStored(parent, hashes):
                    assert not parent or parent in self.mirror
                    self.mirror |= set(hashes)
                case KvRemoved(hashes):
                    self.mirror -= set(hashes)
        assert self.mirror == set(cache.index.names())


def operate(machine: Machine, rng: random.Random) -> None:
    """One random request; those that are refused must be refused for a reason that an oracle expects."""
    intake, owner = machine.intake, rng.choice(OWNERS)
    idle = [s for s in intake.sequences.values() if s.phase is Phase.IDLE and s.keep_s is not None]
    kind = rng.choice(("generate", "generate", "open", "continue", "fork", "truncate", "delete", "drop", "cancel"))
    prompt = [rng.randrange(2) for _ in range(rng.randrange(1, machine.limits.length_max))]
    call = machine.call()
    if kind == "open":
        machine.open_tokens[f"o{call}"] = prompt
        intake.open(call, "", owner, Program(), f"o{call}", tuple(prompt), 60.0, 1e9, machine.clock)
    elif kind == "generate":
        choices, count, stop = rng.randrange(1, 4), rng.randrange(1, 12), frozenset({rng.randrange(VOCAB)})
        ids = tuple(f"g{call}.{i}" for i in range(choices))
        program = Program(rng.choice(("", "p", "q")), priority=rng.randrange(2))
        intake.generate(Generate(call, owner, program, "", ids, tuple(prompt), count, tuple(stop), 1e9))
        for choice in range(choices):
            machine.expected[call, choice] = answer(prompt, count, stop, machine.limits.length_max)
    elif kind == "cancel" and machine.expected:
        victim = rng.choice(sorted(machine.expected))[0]
        intake.cancel(victim, machine.clock)
        for key in [key for key in machine.expected if key[0] == victim]:
            del machine.expected[key]
    elif kind == "drop":
        intake.drop_pages(owner, [rng.choice(sorted(machine.mirror))] if machine.mirror else [], rng.random() < 0.3)
    elif idle:
        on_idle(machine, rng, kind, call, rng.choice(idle).sequence_id)


def on_idle(machine: Machine, rng: random.Random, kind: str, call: int, name: str) -> None:
    intake, sequence = machine.intake, machine.intake.sequences[name]
    if kind == "continue":
        more = tuple(rng.randrange(2) for _ in range(rng.randrange(3)))
        before = [*sequence.tokens, *more]
        intake.generate(Generate(call, sequence.owner, Program(), name, (f"c{call}",), more, 5, (), 1e9))
        machine.expected[call, 0] = answer(before, 5, frozenset(), machine.limits.length_max)
    elif kind == "fork":
        length = rng.randrange(len(sequence.tokens) + 1)
        ids = (f"f{call}.0", f"f{call}.1")
        intake.fork(call, "", sequence.owner, name, ids, length, 1e9)
    elif kind == "truncate":
        intake.truncate(sequence.owner, name, rng.randrange(1, len(sequence.tokens) + 1), machine.clock)
    elif kind == "delete":
        intake.delete(sequence.owner, name)


def run(seed: int, page_tokens: int, page_count: int, step_tokens: int, rounds: int = 60) -> None:
    rng = random.Random(seed)
    machine = Machine(Limits(page_count, page_tokens, step_tokens, 40, VOCAB, sequences_max=24))
    for _ in range(rounds):
        with contextlib.suppress(OutOfRangeError, ResourceExhaustedError, FailedPreconditionError, NotFoundError):
            operate(machine, rng)
        for _ in range(rng.randrange(4)):
            machine.step()
    steps = 0
    while machine.step():
        steps += 1
        assert steps < 20_000, "the schedule does not come to an end"
    assert machine.drawn.keys() >= machine.expected.keys()
    for key, tokens in machine.expected.items():
        assert machine.drawn[key] == tokens
    machine.intake.evict_all()
    machine.settle()
    assert machine.intake.cache.pool.free_count == page_count


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    page_tokens=st.sampled_from((1, 3, 4, 8)),
    page_count=st.integers(3, 24),
    step_tokens=st.sampled_from((1, 2, 5, 16, 64)),
)
def test_every_token_follows_its_own_prefix_and_no_page_is_lost(
    seed: int, page_tokens: int, page_count: int, step_tokens: int
) -> None:
    run(seed, page_tokens, page_count, step_tokens)
