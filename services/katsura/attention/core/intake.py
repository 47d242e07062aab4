"""What may be asked of a shard between two steps: open, generate, fork, truncate, delete, cancel, expire, drain.

`Intake` checks a request, makes its sequences and hands them to the schedule. It answers by outcomes (`plan`), which
name the call; a request that is refused raises.
"""

from __future__ import annotations

from dataclasses import dataclass

from katsura.attention.core.cache import PageCache
from katsura.attention.core.plan import Ended, Failed, Finish, Load, Opened, Outcome, SequenceView
from katsura.attention.core.schedule import Limits, Scheduler, view_of
from katsura.attention.core.sequence import Generation, Owner, Phase, Program, Sequence
from katsura.domain.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    KatsuraError,
    NotFoundError,
    OutOfRangeError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)

PROGRAMS_MAX = 16384
"""Programs whose first arrival is remembered."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a choice had drawn on another shard."""

    tokens: tuple[int, ...]
    finished: bool


@dataclass(frozen=True, slots=True)
class Generate:
    """A generation to begin.

    Attributes:
        call: identity of the call, for outcomes.
        sequence_id: the sequence that it continues; empty: one that lives as long as the call.
        new_ids: an id for every sequence that may have to be made (as many as there are choices).
        tokens: appended before drawing.
        resumed: empty, or one per choice.
    """

    call: int
    owner: Owner
    program: Program
    sequence_id: str
    new_ids: tuple[str, ...]
    tokens: tuple[int, ...]
    new_tokens_max: int
    stop_ids: tuple[int, ...]
    deadline_s: float
    resumed: tuple[Resumed, ...] = ()


class Intake:
    """All sequences of a shard and what is asked of them; time comes in as `now_s` (monotonic seconds)."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.cache = PageCache(limits.page_count, limits.page_tokens)
        self.sequences: dict[str, Sequence] = {}
        self.schedule = Scheduler(limits, self.cache, self.sequences)
        self.draining = False
        self._answered: dict[tuple[str, str], tuple[str, ...]] = {}  # (tenant, request id) -> sequences
        self._forks: dict[int, tuple[str, ...]] = {}  # call -> children that are not all there yet
        self._arrivals: dict[tuple[str, str], int] = {}  # first arrival of a program
        self._arrival = 0

    def open(
        self,
        call: int,
        request_id: str,
        owner: Owner,
        program: Program,
        sequence_id: str,
        tokens: tuple[int, ...],
        keep_s: float,
        deadline_s: float,
        now_s: float,
    ) -> None:
        """Make a kept sequence; answered by `Opened` when it is prefilled."""
        known = self._replayed(owner, request_id)
        if known:
            sequence = known[0]
            if sequence.phase is Phase.IDLE:
                self.schedule.outcomes.append(Opened(call, (view_of(sequence, now_s),)))
            else:
                sequence.calls.append(call)
            return
        self._check_tokens(tokens, self.limits.length_max)
        if not tokens:
            raise InvalidArgumentError("token_ids: a sequence needs at least one token", field="token_ids")
        self._check_room(1)
        order = self._order(owner, program)
        sequence = Sequence(sequence_id, owner, program, order, list(tokens), keep_s or self.limits.keep_s)
        sequence.calls.append(call)
        self._begin(sequence, deadline_s)
        self._remember(owner, request_id, (sequence_id,))

    def generate(self, request: Generate) -> dict[int, str]:
        """Begin a generation; answered by `Admitted`, then `Drew` and `Ended`, or by `Failed`.

        Returns:
            The sequence of each choice that is not finished.
        """
        choices = len(request.new_ids)
        resumed = request.resumed or (Resumed((), False),) * choices
        if len(resumed) != choices:
            raise InvalidArgumentError("resumed: give none, or one per choice", field="resumed")
        live = [choice for choice in range(choices) if not resumed[choice].finished]
        if not live:
            raise InvalidArgumentError("resumed: every choice has ended; there is nothing to draw", field="resumed")
        if max(len(resumed[choice].tokens) for choice in live) >= request.new_tokens_max:
            raise InvalidArgumentError(
                "resumed: a choice that has all its tokens is not marked finished", field="resumed"
            )
        base = self._base(request, request.new_ids[live[0]])
        prompt = len(base.tokens) + len(request.tokens)
        longest = max(len(resumed[choice].tokens) for choice in live)
        self._check_tokens(request.tokens, self.limits.length_max - 1, prompt + longest)
        self._check_room(len(live) - bool(request.sequence_id))
        base.tokens += request.tokens
        for choice in live[1:]:
            tokens = [*base.tokens, *resumed[choice].tokens]
            child = Sequence(request.new_ids[choice], base.owner, base.program, self._next(base), tokens, None)
            child.parent, child.fork_length = base.sequence_id, prompt
            child.generation = _generation(request, choice, len(resumed[choice].tokens), prompt)
            self._begin(child, request.deadline_s)
        base.tokens += resumed[live[0]].tokens
        base.generation = _generation(request, live[0], len(resumed[live[0]].tokens), prompt)
        self._begin(base, request.deadline_s)
        return {live[0]: base.sequence_id} | {choice: request.new_ids[choice] for choice in live[1:]}

    def fork(self, call: int, request_id: str, owner: Owner, parent_id: str, ids: tuple[str, ...], length: int,
             deadline_s: float) -> None:  # fmt: skip
        """Make kept sequences that begin with the first `length` (0: all) tokens of another; answered by `Opened`."""
        parent = self._find(owner, parent_id)
        known = self._replayed(owner, request_id)
        if known:
            self._forks[call] = tuple(child.sequence_id for child in known)
            return
        length = length or len(parent.tokens)
        if not 0 < length <= len(parent.tokens):
            raise OutOfRangeError(
                f"token_count: {length} of a sequence that has {len(parent.tokens)} tokens", field="token_count"
            )
        self._check_room(len(ids))
        for name in ids:
            tokens = parent.tokens[:length]
            child = Sequence(
                name, owner, parent.program, self._next(parent), tokens, parent.keep_s or self.limits.keep_s
            )
            child.parent, child.fork_length = parent_id, length
            self._begin(child, deadline_s)
        self._remember(owner, request_id, ids)
        self._forks[call] = ids

    def truncate(self, owner: Owner, sequence_id: str, length: int, now_s: float) -> SequenceView:
        """Cut a kept sequence back to `length` tokens."""
        sequence = self._find_idle(owner, sequence_id)
        if not 0 < length <= len(sequence.tokens):
            raise OutOfRangeError(
                f"token_count: {length} of a sequence that has {len(sequence.tokens)} tokens", field="token_count"
            )
        self.cache.shorten(sequence, length)
        self.schedule.park(sequence, now_s)
        return view_of(sequence, now_s)

    def delete(self, owner: Owner, sequence_id: str) -> None:
        """Let a sequence go, and fail what is being done with it; an unknown one is no error."""
        sequence = self.sequences.get(sequence_id)
        if sequence is None or sequence.owner.tenant != owner.tenant:
            return
        gone = NotFoundError(f"sequence {sequence_id} was deleted", reason=Reason.SEQUENCE_NOT_FOUND)
        self._fail(sequence, gone)
        self._let_go(sequence)

    def cancel(self, call: int, now_s: float) -> None:
        """End everything that is being done for a call, silently."""
        for sequence in list(self.sequences.values()):
            if sequence.generation is not None and sequence.generation.call == call:
                self.schedule.end(sequence, now_s)
            elif call in sequence.calls:
                sequence.calls.remove(call)
        self._forks.pop(call, None)

    def fail(self, sequence_id: str, error: KatsuraError, now_s: float) -> None:
        """Fail what is being done with one sequence."""
        sequence = self.sequences[sequence_id]
        self._fail(sequence, error)
        self.schedule.end(sequence, now_s)

    def drop_pages(self, owner: Owner, names: list[bytes], all_pages: bool) -> int:
        """Drop cached pages of a tenant; returns how many."""
        if all_pages:
            return self.cache.drop(self.cache.index.of_namespace(owner.namespace))
        return self.cache.drop_named(names, owner.namespace)

    def expire(self, now_s: float, why: str = "") -> None:
        """Fail what passed its deadline, let go what passed its keep time. `why`: what the schedule waits for."""
        for sequence in list(self.sequences.values()):
            if sequence.phase is Phase.IDLE:
                if sequence.until_s <= now_s:
                    self._let_go(sequence)
            elif sequence.deadline_s <= now_s:
                error = DeadlineExceededError("the deadline passed" + (f" while {why}" if why else ""))
                generating = sequence.generation is not None
                self._fail(sequence, error)
                if generating:
                    self.schedule.end(sequence, now_s)
                else:
                    self._let_go(sequence)

    def evict_all(self) -> None:
        """End every generation EVICTED and let everything go: what is left of a drain."""
        for sequence in list(self.sequences.values()):
            generation = sequence.generation
            if generation is not None:
                self.schedule.outcomes.append(Ended(generation.call, generation.choice, Finish.EVICTED))
                sequence.generation = None
            self._fail(sequence, _draining())
            self._let_go(sequence)

    def take_outcomes(self, now_s: float) -> list[Outcome]:
        """What happened since the last call, in order."""
        self._answer_forks(now_s)
        outcomes, self.schedule.outcomes = self.schedule.outcomes, []
        return outcomes

    def load(self) -> Load:
        """What the shard carries."""
        waiting = self.schedule.waiting
        return Load(
            self.limits.page_count,
            self.cache.pool.free_count,
            self.cache.pool.cached_count,
            len(self.schedule.running),
            len(waiting),
            sum(sequence.pending for sequence in waiting),
            len(self.sequences),
        )

    def _base(self, request: Generate, new_id: str) -> Sequence:
        if request.sequence_id:
            return self._find_idle(request.owner, request.sequence_id)
        if not request.tokens:
            raise InvalidArgumentError("token_ids: there is nothing to continue", field="token_ids")
        order = self._order(request.owner, request.program)
        return Sequence(new_id, request.owner, request.program, order, [], None)

    def _begin(self, sequence: Sequence, deadline_s: float) -> None:
        sequence.deadline_s = deadline_s
        self.sequences[sequence.sequence_id] = sequence
        self.schedule.enqueue(sequence)

    def _let_go(self, sequence: Sequence) -> None:
        self.schedule.withdraw(sequence)
        self.cache.let_go(sequence)
        self.sequences.pop(sequence.sequence_id, None)

    def _fail(self, sequence: Sequence, error: KatsuraError) -> None:
        generation, sequence.generation = sequence.generation, None
        if generation is not None:
            self.schedule.outcomes.append(Failed(generation.call, error))
        self.schedule.outcomes += [Failed(call, error) for call in sequence.calls]
        sequence.calls.clear()

    def _find(self, owner: Owner, sequence_id: str) -> Sequence:
        sequence = self.sequences.get(sequence_id)
        if sequence is None or sequence.owner.tenant != owner.tenant:
            raise NotFoundError(
                f"there is no sequence {sequence_id} here; it may have passed its keep time",
                reason=Reason.SEQUENCE_NOT_FOUND,
                field="sequence_id",
            )
        return sequence

    def _find_idle(self, owner: Owner, sequence_id: str) -> Sequence:
        sequence = self._find(owner, sequence_id)
        if sequence.phase is not Phase.IDLE:
            raise FailedPreconditionError(
                f"sequence {sequence_id} is being computed; wait for its call to end, or fork it", field="sequence_id"
            )
        return sequence

    def _check_tokens(self, tokens: tuple[int, ...], longest: int, total: int = 0) -> None:
        if tokens and not (min(tokens) >= 0 and max(tokens) < self.limits.vocab_size):
            raise InvalidArgumentError(
                f"token_ids: ids of this model are 0 to {self.limits.vocab_size - 1}", field="token_ids"
            )
        total = total or len(tokens)
        if total > longest:
            raise OutOfRangeError(
                f"{total} tokens do not fit: at most {longest}",
                reason=Reason.CONTEXT_TOO_LONG,
                field="token_ids",
                metadata={"tokens": str(total), "tokens_max": str(longest)},
            )

    def _check_room(self, count: int) -> None:
        if self.draining:
            raise _draining()
        if len(self.schedule.waiting) >= self.limits.waiting_max:
            raise ResourceExhaustedError(
                f"{len(self.schedule.waiting)} sequences wait already; try another shard, or later",
                reason=Reason.QUEUE_FULL,
                retry_after_s=1.0,
            )
        if len(self.sequences) + count > self.limits.sequences_max:
            raise ResourceExhaustedError(
                f"{len(self.sequences)} sequences are open and {self.limits.sequences_max} may be; delete some",
                reason=Reason.KV_EXHAUSTED,
                retry_after_s=1.0,
            )

    def _order(self, owner: Owner, program: Program) -> tuple[int, int, int]:
        self._arrival += 1
        if not program.program_id:
            return (-program.priority, self._arrival, self._arrival)
        key = (owner.tenant, program.program_id)
        first = self._arrivals.pop(key, self._arrival)
        self._arrivals[key] = first  # the least recently seen program is forgotten first
        if len(self._arrivals) > PROGRAMS_MAX:
            del self._arrivals[next(iter(self._arrivals))]
        return (-program.priority, first, self._arrival)

    def _next(self, sequence: Sequence) -> tuple[int, int, int]:
        self._arrival += 1
        return (*sequence.order[:2], self._arrival)

    def _replayed(self, owner: Owner, request_id: str) -> list[Sequence]:
        names = self._answered.get((owner.tenant, request_id), ()) if request_id else ()
        found = [self.sequences[name] for name in names if name in self.sequences]
        return found if len(found) == len(names) else []

    def _remember(self, owner: Owner, request_id: str, names: tuple[str, ...]) -> None:
        if request_id:
            self._answered[owner.tenant, request_id] = names
        if len(self._answered) > 2 * self.limits.sequences_max:
            self._answered = {k: v for k, v in self._answered.items() if all(name in self.sequences for name in v)}

    def _answer_forks(self, now_s: float) -> None:
        for call, names in list(self._forks.items()):
            children = [self.sequences.get(name) for name in names]
            found = [child for child in children if child is not None]
            if len(found) < len(names):
                gone = NotFoundError("a fork was let go before it was made", reason=Reason.SEQUENCE_NOT_FOUND)
                self.schedule.outcomes.append(Failed(call, gone))
            elif all(child.phase is not Phase.FORKING for child in found):
                self.schedule.outcomes.append(Opened(call, tuple(view_of(child, now_s) for child in found)))
            else:
                continue
            del self._forks[call]


def _generation(request: Generate, choice: int, drawn: int, prompt: int) -> Generation:
    return Generation(request.call, choice, request.new_tokens_max, frozenset(request.stop_ids), drawn, drawn, prompt)


def _draining() -> UnavailableError:
    return UnavailableError("this shard is draining; ask the router for another", reason=Reason.DRAINING)
