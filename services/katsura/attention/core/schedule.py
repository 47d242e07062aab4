"""Which tokens the next step computes: one token budget, decodes first, then chunks of prompts.

Programs are served in the order of their first arrival, larger priorities before that. A prompt is admitted when all
its pages are there, so only growth by decoding can run out of pages. Then, in this order and never inside a step, the
pages go of: kept sequences that nobody uses (longest untouched first), waiting forks, running sequences from the end
of the order. What lost its pages is computed again, often from pages that are still cached. A sequence never takes
pages from one before it in the order, and one sequence always fits alone, so the first in the order always proceeds.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass

from katsura.attention.core.cache import Copies, PageCache
from katsura.attention.core.plan import Admitted, Drew, Finish, Opened, Outcome, Row, SequenceView, StepPlan
from katsura.attention.core.sequence import Generation, Phase, Sequence


@dataclass(frozen=True, slots=True)
class Limits:
    """What a shard may carry.

    Attributes:
        page_count, page_tokens: the arena.
        step_tokens: tokens of one step.
        context_tokens: tokens of one sequence, prompt and answer together.
        vocab_size: token ids are below it.
        running_max: sequences in the batch; waiting_max: sequences that wait; sequences_max: all of them.
        keep_s: how long an opened sequence is kept untouched unless its call says otherwise.
    """

    page_count: int
    page_tokens: int
    step_tokens: int
    context_tokens: int
    vocab_size: int
    running_max: int = 64
    waiting_max: int = 1024
    sequences_max: int = 4096
    keep_s: float = 300.0

    @property
    def length_max(self) -> int:
        """Tokens of the longest sequence: one page stays free, so that it can copy its last one on write."""
        return min(self.context_tokens, (self.page_count - 1) * self.page_tokens)


class Scheduler:
    """Waiting, running and kept sequences over one page cache."""

    def __init__(self, limits: Limits, cache: PageCache, sequences: dict[str, Sequence]) -> None:
        self.limits = limits
        self.cache = cache
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._sequences = sequences
        self._forking: list[Sequence] = []
        self._idle: dict[str, Sequence] = {}  # longest untouched first
        self._running_max = min(limits.running_max, limits.step_tokens)
        self._step = 0
        self.outcomes: list[Outcome] = []
        """What happened since they were taken, in order; `Intake` adds to them."""

    def enqueue(self, sequence: Sequence) -> None:
        """Let a sequence wait for its parent's KV, or for admission."""
        self._idle.pop(sequence.sequence_id, None)
        if sequence.parent:
            sequence.phase = Phase.FORKING
            self._forking.append(sequence)
            return
        sequence.phase = Phase.WAITING
        insort(self.waiting, sequence, key=_order)

    def park(self, sequence: Sequence, now_s: float) -> None:
        """Keep a sequence that nothing is done with."""
        sequence.phase = Phase.IDLE
        sequence.generation = None
        sequence.until_s = now_s + (self.limits.keep_s if sequence.keep_s is None else sequence.keep_s)
        self._idle.pop(sequence.sequence_id, None)
        self._idle[sequence.sequence_id] = sequence

    def withdraw(self, sequence: Sequence) -> None:
        """Take a sequence out of every queue; its pages stay with it."""
        self._idle.pop(sequence.sequence_id, None)
        queue = {Phase.FORKING: self._forking, Phase.WAITING: self.waiting, Phase.RUNNING: self.running}
        if sequence.phase in queue:
            queue[sequence.phase].remove(sequence)
        sequence.phase = Phase.IDLE

    def plan(self, now_s: float) -> StepPlan | None:
        """The next step, or None where nothing can be computed. Every plan is committed or computed again."""
        self._settle_forks(now_s)
        rows: list[Row] = []
        copies: Copies = []
        planned: set[str] = set()
        budget = self.limits.step_tokens
        decodes = [sequence for sequence in self.running if sequence.pending == 1]
        prefills = [sequence for sequence in self.running if sequence.pending > 1]
        for sequence in (*decodes, *prefills):
            if budget == 0:
                break
            length = sequence.computed + min(sequence.pending, budget)
            if sequence.phase is Phase.RUNNING and self._make_room(sequence, length, planned):
                copies += self.cache.cover(sequence, length)
                planned.add(sequence.sequence_id)
                rows.append(_row(sequence, length))
                budget -= len(rows[-1].tokens)
        while budget > 0 and self.waiting and len(self.running) < self._running_max:
            sequence = self.waiting[0]
            if not self._admit(sequence, copies):
                break
            rows.append(_row(sequence, sequence.computed + min(sequence.pending, budget)))
            budget -= len(rows[-1].tokens)
        if not rows:
            return None
        self._step += 1
        return StepPlan(self._step, tuple(copies), tuple(rows))

    def commit(self, plan: StepPlan, draws: Mapping[str, int], now_s: float) -> None:
        """Take over a step that was computed: `draws` has the token of every row that draws."""
        for row in plan.rows:
            sequence = self._sequences[row.sequence_id]
            sequence.computed = row.start + len(row.tokens)
            self.cache.publish(sequence)
            if row.draws:
                assert sequence.generation is not None
                self._draw(sequence, sequence.generation, draws[row.sequence_id], now_s)
            elif sequence.pending == 0:
                self._opened(sequence, now_s)

    def end(self, sequence: Sequence, now_s: float) -> None:
        """End what is being done with a sequence: keep it, or let it go if it only lived for that."""
        self.withdraw(sequence)
        if sequence.keep_s is None:
            self.cache.let_go(sequence)
            del self._sequences[sequence.sequence_id]
        else:
            self.park(sequence, now_s)

    def _draw(self, sequence: Sequence, generation: Generation, token: int, now_s: float) -> None:
        sequence.tokens.append(token)
        position, generation.drawn = generation.drawn, generation.drawn + 1
        finish = None
        if token in generation.stop_ids:
            finish = Finish.STOP
        elif generation.drawn >= generation.new_tokens_max or len(sequence.tokens) >= self.limits.length_max:
            finish = Finish.LENGTH
        name = sequence.sequence_id
        self.outcomes.append(Drew(generation.call, generation.choice, position, name, token, finish))
        if finish is not None:
            self.end(sequence, now_s)

    def _opened(self, sequence: Sequence, now_s: float) -> None:
        self.withdraw(sequence)
        self.park(sequence, now_s)
        view = view_of(sequence, now_s)
        self.outcomes += [Opened(call, (view,)) for call in sequence.calls]
        sequence.calls.clear()

    def _admit(self, sequence: Sequence, copies: Copies) -> bool:
        matched = not sequence.pages
        if matched:
            pages = self.cache.matched(sequence)
            self.cache.adopt(sequence, pages, len(pages) * self.limits.page_tokens)
        sequence.computed = min(sequence.computed, len(sequence.tokens) - 1)
        length = len(sequence.tokens)
        headroom = len(self.running)  # every running sequence may need a page before the next admission
        while self.cache.pool.free_count < self.cache.missing(sequence, length) + headroom:
            if not self._reclaim_unused(sequence):
                if matched:
                    self.cache.let_go(sequence)
                return False
        self.withdraw(sequence)
        sequence.phase = Phase.RUNNING
        insort(self.running, sequence, key=_order)
        copies += self.cache.cover(sequence, length)
        if sequence.cached_tokens < 0:
            sequence.cached_tokens = sequence.computed
        generation = sequence.generation
        if generation is not None and generation.cached_tokens < 0:
            generation.cached_tokens = min(sequence.computed, generation.prompt_tokens)
            self.outcomes.append(Admitted(generation.call, generation.prompt_tokens, generation.cached_tokens))
        return True

    def _make_room(self, sequence: Sequence, length: int, planned: set[str]) -> bool:
        while self.cache.pool.free_count < self.cache.missing(sequence, length):
            if self._reclaim_unused(sequence):
                continue
            victim = next((s for s in reversed(self.running) if s.sequence_id not in planned), sequence)
            if _order(victim) < _order(sequence):
                victim = sequence
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.withdraw(sequence)
        self.cache.let_go(sequence)
        sequence.phase = Phase.WAITING
        insort(self.waiting, sequence, key=_order)

    def _reclaim_unused(self, keep: Sequence) -> bool:
        for sequence in (*self._idle.values(), *reversed(self.waiting)):
            if sequence.pages and sequence is not keep:
                self.cache.let_go(sequence)
                return True
        return False

    def _settle_forks(self, now_s: float) -> None:
        for child in list(self._forking):
            parent = self._sequences.get(child.parent)
            shared = min(child.fork_length, len(child.tokens) - (child.generation is not None))
            if parent is not None:
                busy = parent.phase is not Phase.IDLE
                if busy and parent.computed < shared and len(parent.tokens) >= shared:
                    continue
                shared = min(shared, parent.computed)
                self.cache.adopt(child, parent.pages[: self.cache.pages_for(shared)], shared)
            self._forking.remove(child)
            child.phase, child.parent = Phase.IDLE, ""
            if child.generation is not None:
                self.enqueue(child)
            else:
                child.cached_tokens = child.computed
                self.park(child, now_s)


def view_of(sequence: Sequence, now_s: float) -> SequenceView:
    """What a sequence's owner sees."""
    return SequenceView(
        sequence.sequence_id,
        sequence.program,
        len(sequence.tokens),
        sequence.computed,
        max(0, sequence.cached_tokens),
        max(0.0, sequence.until_s - now_s),
    )


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order


def _row(sequence: Sequence, length: int) -> Row:
    tokens = tuple(sequence.tokens[sequence.computed : length])
    draws = sequence.generation is not None and length == len(sequence.tokens)
    return Row(sequence.sequence_id, sequence.computed, tokens, tuple(sequence.pages), draws)
