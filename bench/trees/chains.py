"""What a model reads over a whole run: a tree under a budget, beside a history that is only appended to.

A chain of subgoals, made up from a seed: actions and observations, facts that are asked for at the end, and now and
then a subgoal that fails and is begun anew (the tree goes back by Revise; the history keeps the failure). Tokens are
the service's own estimate for both. A prefix cache remembers every prompt and every answer of the run; what a prompt
shares with none of them is *uncached*. No model is asked.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import Provenance, Step, TreePolicy
from katsura.memory.core.assemble import SegmentKind
from katsura.memory.core.tokens import estimate, estimate_step
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.state.contents import Scope
from katsura.state.trees import Limits, TreeRef
from katsura.state.trees_twin import TwinTreeStore

BUDGET = 4_000
PINS = ("never pay more than 450 USD", "arrive before 18:00", "no hotel twice")
CALLS_PER_SUBGOAL = 5
FAILURES = 0.2
SMALL_CACHE = 16_384
"""Tokens of one session that an engine keeps between calls, where others want the memory too."""
WORDS = ("page", "result", "offer", "room", "train", "seat", "price", "note", "station", "garden", "river", "bridge")


@dataclass
class Reading:
    """Tokens of all prompts of a run, and those of them that no cache held. `small` is with SMALL_CACHE tokens kept."""

    prompt: int = 0
    uncached: int = 0
    uncached_small: int = 0
    peak: int = 0

    def add(self, tokens: int, uncached: int) -> None:
        self.prompt += tokens
        self.uncached += uncached
        self.uncached_small += max(uncached, tokens - SMALL_CACHE)
        self.peak = max(self.peak, tokens)


@dataclass
class Outcome:
    """One chain."""

    ours: Reading = field(default_factory=Reading)
    appended: Reading = field(default_factory=Reading)
    summaries: int = 0
    """Of our uncached tokens: summaries and roll-ups, read for the first time or again."""
    again: int = 0
    """Of our uncached tokens: steps, pins and hints that an earlier prompt showed behind another prefix."""
    over_budget: int = 0
    pins_missing: int = 0
    calls: int = 0
    asked: int = 0
    in_context: int = 0
    found: int = 0


@dataclass(frozen=True)
class Subgoal:
    """Steps of one attempt, and the facts among them: what is asked, and what an answer must say."""

    steps: tuple[Step, ...]
    facts: tuple[tuple[str, str], ...]


class PrefixCache:
    """Sequences of segments, shared from the front."""

    def __init__(self) -> None:
        self._root: dict[object, dict[object, object]] = {}

    def uncached(self, keys: Sequence[object]) -> int:
        """How many of the last `keys` come after the longest prefix seen before; remembers all of them."""
        at, missed = self._root, 0
        for key in keys:
            if key not in at:
                missed += 1
                at[key] = {}
            at = at[key]  # type: ignore[assignment]
        return missed


def subgoal_of(drawn: random.Random, number: int, fails: bool) -> Subgoal:
    """One attempt: each call acts, and reads about 350 tokens of page with one fact in it."""
    steps: list[Step] = []
    facts: list[tuple[str, str]] = []
    for call in range(CALLS_PER_SUBGOAL):
        name = f"offer-{number}-{call}"
        value = f"QX-{drawn.randrange(10_000, 99_999)}"
        noise = [" ".join(drawn.choices(WORDS, k=14)) for _ in range(12)]
        noise.insert(drawn.randrange(len(noise)), f"{name} has reference {value}")
        facts.append((name, value))
        last = call + 1 == CALLS_PER_SUBGOAL
        marks = {"criterion.done": "fail" if fails else "pass"} if last else {}
        steps.append(Step(f"Look at {name}: {' '.join(drawn.choices(WORDS, k=20))}", role="assistant"))
        steps.append(
            Step("\n".join(noise), role="tool", provenance=Provenance.TOOL, attributes=marks),
        )
    return Subgoal(tuple(steps), tuple(facts))


class Run:
    """One chain lived twice at once: on a tree, and as a growing list."""

    def __init__(self, seed: int, subgoals: int) -> None:
        self._random = random.Random(seed)
        self._subgoals = subgoals
        self._memory = Memory(TwinTreeStore(Limits()), lambda: "unused", heartbeat_s=15)
        self._ref = TreeRef(TenantId("bench"), TreeId(f"chain{seed}"))
        self._cache = PrefixCache()
        self._shown: set[tuple[str, str]] = set()
        self._history = estimate("Plan the trip.")
        self._unread = self._history
        self._facts: list[tuple[str, str]] = []
        self._boundary = 0
        self._branch = "main"
        self.outcome = Outcome()

    async def live(self) -> Outcome:
        """The whole chain, and the questions at its end."""
        await self._memory.create_tree(self._ref.tenant, "", self._ref.tree, "Plan the trip.", PINS, TreePolicy(), {})
        for number in range(self._subgoals):
            while True:
                fails = self._random.random() < FAILURES
                subgoal = subgoal_of(self._random, number, fails)
                head = await self._attempt(subgoal)
                if not fails:
                    break
                revised = await self._memory.revise(self._write(), self._boundary, "the offers are gone", "", False)
                self._branch = revised.branch.name
            self._facts += subgoal.facts
            self._boundary = head
            await self._memory.compress(self._write(), 0, None, "", (), False)
        await self._memory.close()
        for question, answer in self._facts:
            await self._ask(question, answer)
        return self.outcome

    def _write(self) -> Write:
        return Write("", self._ref, self._branch, None, True)

    async def _attempt(self, subgoal: Subgoal) -> int:
        head = 0
        for act, observe in zip(subgoal.steps[::2], subgoal.steps[1::2], strict=True):
            await self._call_model(act)
            head = (await self._memory.grow(self._write(), [act, observe], True)).branch.head
            self._history += estimate_step(act) + estimate_step(observe)
            self._unread = estimate_step(observe)
        return head

    async def _call_model(self, answer: Step) -> None:
        outcome = self.outcome
        assembled = await self._memory.assemble_context(self._ref, self._branch, BUDGET, 0, "", False)
        segments = assembled.assembly.segments
        keys = [(s.role, s.content) for s in segments]
        unread = segments[len(segments) - self._cache.uncached(keys) :]
        outcome.calls += 1
        outcome.over_budget += assembled.assembly.total_tokens > BUDGET
        shown = "\n".join(s.content for s in segments if s.kind is SegmentKind.PIN)
        outcome.pins_missing += any(pin not in shown for pin in PINS)
        outcome.ours.add(assembled.assembly.total_tokens, sum(s.token_count for s in unread))
        outcome.summaries += sum(s.token_count for s in unread if s.kind is SegmentKind.SUMMARY)
        outcome.again += sum(
            s.token_count for s in unread if s.kind is not SegmentKind.SUMMARY and (s.role, s.content) in self._shown
        )
        self._shown.update(keys)
        self._cache.uncached([*keys, (answer.role, answer.content)])
        outcome.appended.add(self._history, self._unread)

    async def _ask(self, question: str, answer: str) -> None:
        """Is the answer in the context, else in what a search for the question's words finds?"""
        outcome = self.outcome
        outcome.asked += 1
        assembled = await self._memory.assemble_context(self._ref, self._branch, BUDGET, 0, "", False)
        if any(answer in s.content for s in assembled.assembly.segments):
            outcome.in_context += 1
            return
        hits, _ = await self._memory.search(self._ref, Scope.PATH, self._branch, question, 0, 10, False)
        outcome.found += any(isinstance(h.node.body, Step) and answer in h.node.body.content for h in hits)
