"""A scripted agent that knows only what its context says, on tasks whose subgoals need each other's results.

A task is a chain of subgoals. Each is answered by looking something up with the results of one or two earlier ones, so
that a wrong result spoils whatever is built on it, and nobody tells. The agent reads pages of noise, and three things
happen to it as they happen to language models; how often is drawn from the task's seed, the same for every arm:

- what it does not see it guesses, and its context is small;
- it *slips*: it writes down a wrong result, and the check at the end of the subgoal fails. It begins the subgoal anew.
  Where the failed attempt is still to be seen beside the good one, it takes either;
- the summary that it writes *misquotes* a result.

Arms leave out one operation of MAGE each: without `compress` old steps fall out of the context; without `maintain` a
summary is believed unread (else one that fails is replaced by the shipped compressor's); without `revise` the failed
attempt stays on the path. How bad a slip is without Revise rests on an assumption about models (either result, at
random), so the direction counts, not the size.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from hashlib import blake2b

from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import Node, Provenance, Step, Summary, SummaryBody, SummaryStatus, TreePolicy
from katsura.memory.core.validate import OUTCOME
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.state.trees import Limits, TreeRef, Written
from katsura.state.trees_twin import TwinTreeStore

SUBGOALS, PAGES = 10, 3
BUDGET = 1_500
SLIPS, MISQUOTES = 0.25, 0.25
ARMS = ("all", "compress", "maintain", "revise")
"""All operations, or without the one named."""
WORDS = ("page", "result", "offer", "room", "train", "seat", "price", "note", "station", "garden", "river", "bridge")
_RESULT = re.compile(r"subgoal (\d+) gives (QX-\d{5})")


@dataclass(frozen=True)
class Task:
    """What subgoals need, and where slips and misquotes fall."""

    seed: int
    needs: tuple[tuple[int, ...], ...]
    slips: frozenset[int]
    misquotes: frozenset[int]

    @classmethod
    def of(cls, seed: int) -> Task:
        drawn = random.Random(seed)
        needs = tuple(tuple(drawn.sample(range(i), min(i, drawn.choice((1, 2))))) for i in range(SUBGOALS))
        slips = frozenset(i for i in range(SUBGOALS) if drawn.random() < SLIPS)
        return cls(seed, needs, slips, frozenset(i for i in range(SUBGOALS) if drawn.random() < MISQUOTES))

    def look_up(self, subgoal: int, known: dict[int, str]) -> str:
        """What the world answers to these results of earlier subgoals: right only if they are."""
        asked = " ".join(known[need] for need in self.needs[subgoal])
        digest = blake2b(f"{self.seed} {subgoal} {asked}".encode(), digest_size=4).digest()
        return f"QX-{10_000 + int.from_bytes(digest) % 90_000}"

    def truth(self) -> list[str]:
        """The right results."""
        found: dict[int, str] = {}
        for subgoal in range(SUBGOALS):
            found[subgoal] = self.look_up(subgoal, found)
        return list(found.values())


class Agent:
    """One arm on one task."""

    def __init__(self, task: Task, without: str) -> None:
        self._task, self._without = task, without
        self._random = random.Random(f"{task.seed} acts")
        self._memory = Memory(TwinTreeStore(Limits()), lambda: "unused", heartbeat_s=15)
        self._ref = TreeRef(TenantId("bench"), TreeId("task"))
        self._branch, self._boundary = "main", 0

    async def solve(self) -> float:
        """Share of subgoals with the right result."""
        await self._memory.create_tree(self._ref.tenant, "", self._ref.tree, "Plan the trip.", (), TreePolicy(), {})
        results = []
        for subgoal in range(SUBGOALS):
            known = await self._known(self._task.needs[subgoal])
            result = self._task.look_up(subgoal, known)
            if subgoal in self._task.slips:
                await self._attempt(subgoal, self._guess(), "fail")
                await self._begin_anew()
            head = await self._attempt(subgoal, result, "pass")
            results.append(result)
            if self._without != "compress":
                await self._compress(subgoal, result)
            self._boundary = head
        await self._memory.close()
        return sum(ours == right for ours, right in zip(results, self._task.truth(), strict=True)) / SUBGOALS

    async def _known(self, needs: tuple[int, ...]) -> dict[int, str]:
        """What the context says of earlier results; a guess for what it does not say, any of what it contradicts."""
        assembled = await self._memory.assemble_context(self._ref, self._branch, BUDGET, 0, "", False)
        seen: dict[int, dict[str, None]] = {}
        for segment in assembled.assembly.segments:
            for number, value in _RESULT.findall(segment.content):
                seen.setdefault(int(number), {})[value] = None
        return {need: self._random.choice(list(seen.get(need, {self._guess(): None}))) for need in needs}

    async def _attempt(self, subgoal: int, result: str, check: str) -> int:
        """Read pages, and write the result down; the step that ends the attempt."""
        pages = ["\n".join(" ".join(self._random.choices(WORDS, k=12)) for _ in range(8)) for _ in range(PAGES)]
        steps = [Step(page, role="tool", provenance=Provenance.TOOL) for page in pages]
        steps.append(Step(f"subgoal {subgoal} gives {result}", role="assistant", attributes={"criterion.done": check}))
        return (await self._memory.grow(self._write(), steps, True)).branch.head

    async def _begin_anew(self) -> None:
        if self._without == "revise":
            return
        revised = await self._memory.revise(self._write(), self._boundary, "the check failed", "", False)
        self._branch = revised.branch.name

    async def _compress(self, subgoal: int, result: str) -> None:
        """A summary in the agent's own words; where Maintain fails it, the shipped compressor's."""
        lines = [f"subgoal {number} gives {value}" for number, value in await self._raw_results()]
        if subgoal in self._task.misquotes:
            wrong = self._guess()
            lines = [line.replace(result, wrong) for line in lines]
        body = SummaryBody("Read pages and noted results.", facts=tuple(lines))
        validators = (OUTCOME,) if self._without == "maintain" else ()
        written = await self._memory.compress(self._write(), 0, body, "", validators, False)
        assert isinstance(written, Written)
        judgement = written.node.judgement
        if judgement is not None and judgement.status is SummaryStatus.FAILED:
            await self._redo(written.node)

    async def _redo(self, failed: Node) -> None:
        assert isinstance(failed.body, Summary)
        await self._memory.compress(self._write(), failed.body.last_covered, None, "", (), False)

    async def _raw_results(self) -> list[tuple[str, str]]:
        path = await self._memory.get_path(self._ref, self._branch, 0, 2 * (PAGES + 1))
        said = [
            node.body.content for node in path.nodes if node.node_id > self._boundary and isinstance(node.body, Step)
        ]
        return [found for text in said for found in _RESULT.findall(text)]

    def _guess(self) -> str:
        return f"QX-{self._random.randrange(10_000, 100_000)}"

    def _write(self) -> Write:
        return Write("", self._ref, self._branch, None, True)
