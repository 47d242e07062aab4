"""What the gateway does to trees: find where a conversation goes on, grow it, show it, keep the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1 import memory_service_pb2 as service_pb
from katsura.domain.errors import ConflictError, NotFoundError, OutOfRangeError, Reason
from katsura.gateway.core.chat_request import Message
from katsura.gateway.core.prompt import Part, Prompt
from katsura.gateway.core.session_match import Continuation, Path, PathStep, continuation
from katsura.gateway.texts import ModelText
from katsura.sdk import MemoryClient
from katsura.sdk.memory import EMPTY_ROOT, step
from katsura.telemetry import log

_LOG = log.get(__name__)
_REMATCHES_MAX = 4
MADE_BY = "katsura.dev/made-by"
"""Label of trees that a client did not ask for by name."""
MADE_BY_RESPONSES = "responses"
_ASSEMBLIES_MAX = 3


@dataclass(frozen=True, slots=True)
class Place:
    """A point of a tree: `head` is the last node of `branch` there, 0 where the branch is empty."""

    tree_id: str
    branch: str
    head: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to keep: `token_ids` are its rendered ids as drawn, None where they cannot be said exactly."""

    text: str
    token_ids: tuple[int, ...] | None
    cost: tree_pb.Cost
    model: str


@dataclass(frozen=True, slots=True)
class Kept:
    """Where an answer was kept, and whether its branch is due for a compression."""

    place: Place
    compress_due: bool


class Trees:
    """Operations on one tenant's trees for one request; `request_id` makes every write of it repeatable."""

    def __init__(self, memory: MemoryClient, request_id: str) -> None:
        self._memory = memory
        self._request_id = request_id

    async def make(self, tree_id: str) -> Place:
        """Make a tree for a first stored response."""
        made = await self._memory.create_tree(
            tree_id=tree_id, labels={MADE_BY: MADE_BY_RESPONSES}, request_id=f"{self._request_id}.tree"
        )
        return Place(tree_id, made.branch.name, made.branch.head)

    async def find(self, tree_id: str, branch: str, param: str, branch_param: str) -> Place:
        """The head of a branch of a session; NOT_FOUND naming `param` or, of the branch, `branch_param`."""
        try:
            page = await self._memory.get_path(tree_id, branch=branch, page_size=1)
        except NotFoundError as error:
            raise _unknown_session(error, tree_id, param, branch_param) from None
        return Place(tree_id, page.branch.name, page.branch.head)

    async def match(self, tree_id: str, messages: Sequence[Message], param: str) -> Place:
        """Append what is new in a whole conversation: after the longest path that equals its beginning.

        Somebody else may write the same branch meanwhile; then the conversation is matched anew.
        """
        for attempt in range(_REMATCHES_MAX):
            found = continuation(messages, await self._paths(tree_id, messages, param))
            try:
                return await self._go_on(tree_id, found, attempt)
            except ConflictError:
                if attempt + 1 == _REMATCHES_MAX:
                    raise
        raise AssertionError("unreachable")

    async def append(self, place: Place, messages: Sequence[Message], *, fork_if_moved: bool = False) -> Place:
        """Grow `messages` after `place`.

        Args:
            fork_if_moved: where the branch went on, continue on a new one from `place`; else that is ABORTED.
        """
        try:
            return await self._grow(place, messages, "turn")
        except ConflictError:
            if not fork_if_moved:
                raise
        return await self._grow(await self.fork(place, "turn-fork"), messages, "turn-forked")

    async def fork(self, place: Place, what: str) -> Place:
        """A new branch at `place`; `what` tells this fork from others of the request."""
        made = await self._memory.fork(
            place.tree_id,
            branch=place.branch,
            at_node=place.head or EMPTY_ROOT,
            request_id=f"{self._request_id}.{what}",
        )
        return replace(place, branch=made.branch.name)

    async def path(self, place: Place) -> list[Part]:
        """Every step up to `place` as it is, without summaries and ids: for answers that are not kept."""
        if not place.head:
            return []
        nodes = await self._memory.get_whole_path(place.tree_id, branch=place.branch, end_node=place.head)
        return [Part(_message(node)) for node in nodes]

    async def prompt(
        self,
        place: Place,
        text: ModelText,
        tokenizer_digest: str,
        before: Sequence[Part],
        budget_tokens: int,
        reserve_tokens: int,
    ) -> Prompt:
        """The prompt of `place` under a budget, `before` leading it.

        Nodes that carry no ids are tokenised and the ids attached; then their counts are exact, and assembly is asked
        again, until it answers from exact counts alone.

        Raises:
            OutOfRangeError: even what may not be dropped does not fit.
        """
        extra = len((await text.prompt([*before, Part(Message("user", ""))])).token_ids)
        for _ in range(_ASSEMBLIES_MAX):
            try:
                context = await self._memory.assemble_context(
                    place.tree_id,
                    branch=place.branch,
                    budget_tokens=budget_tokens,
                    reserve_tokens=reserve_tokens + extra,
                    tokenizer_digest=tokenizer_digest,
                    include_token_ids=True,
                )
            except OutOfRangeError as error:
                raise OutOfRangeError(
                    f"the session does not fit this model's context: {error.message}",
                    reason=Reason.CONTEXT_TOO_LONG,
                    field="messages",
                ) from None
            missing = frozenset(context.untokenized_node_ids)  # not notices, nor the nodes of another tree
            parts = [
                Part(
                    Message(shown.role, shown.content),
                    shown.node_id if shown.node_id in missing and not shown.tree_id else 0,
                    tuple(shown.token_ids),
                )
                for shown in context.segments
            ]
            prompt = await text.prompt([*before, *parts])
            if not prompt.to_attach:
                return prompt
            await self._memory.attach_tokens(place.tree_id, tokenizer_digest, prompt.to_attach)
        return prompt

    async def keep(self, place: Place, index: int, answer: Answer, tokenizer_digest: str) -> Kept:
        """Grow answer number `index` after `place`: the first on its branch, others and latecomers on forks of it."""
        label = f"answer-{index}"
        at = place if index == 0 else await self.fork(place, f"{label}-fork")
        grown_step = step(
            "assistant",
            answer.text,
            client_step_id=f"{self._request_id}.{label}",
            cost=answer.cost,
            attributes={"model": answer.model},
        )
        try:
            grown = await self._grow_steps(at, [grown_step], label)
        except ConflictError:
            _LOG.info("the branch went on meanwhile; keeping the answer on a fork", branch=at.branch)
            at = await self.fork(place, f"{label}-late-fork")
            grown = await self._grow_steps(at, [grown_step], f"{label}-late")
        node_id = grown.node_ids[-1]
        if answer.token_ids is not None:
            await self._memory.attach_tokens(place.tree_id, tokenizer_digest, {node_id: answer.token_ids})
        return Kept(replace(at, head=node_id), grown.compress_due)

    async def _go_on(self, tree_id: str, found: Continuation, attempt: int) -> Place:
        place = Place(tree_id, found.branch, found.at_node)
        if found.fork:
            place = await self.fork(place, f"match-{attempt}")
        return await self._grow(place, found.new, f"match-{attempt}-turn")

    async def _grow(self, place: Place, messages: Sequence[Message], what: str) -> Place:
        if not messages:
            return place
        steps = [
            step(message.role, message.content, client_step_id=f"{self._request_id}.{what}.{index}")
            for index, message in enumerate(messages)
        ]
        grown = await self._grow_steps(place, steps, what)
        return Place(place.tree_id, grown.branch.name, grown.node_ids[-1])

    async def _grow_steps(self, place: Place, steps: Sequence[tree_pb.Step], what: str) -> service_pb.GrowResponse:
        request_id = f"{self._request_id}.{what}"
        return await self._memory.grow(
            place.tree_id, steps, branch=place.branch, expected_head=place.head, request_id=request_id
        )

    async def _paths(self, tree_id: str, messages: Sequence[Message], param: str) -> list[Path]:
        """Paths that may be the longest match, the default branch's first.

        A branch can only match further than its parent where the parent matched up to the fork; the others are not
        read. Branches are listed in the order they were made, so parents come before their children.
        """
        try:
            tree = await self._memory.get_tree(tree_id)
        except NotFoundError as error:
            raise _unknown_session(error, tree_id, param) from None
        first = tree.tree.default_branch
        paths: list[Path] = []
        matched: set[int] = {0}
        for branch in sorted(tree.branches, key=lambda branch: branch.name != first):
            if branch.name != first and branch.fork_node not in matched:
                continue
            nodes = await self._memory.get_whole_path(tree_id, branch=branch.name) if branch.head else []
            steps = tuple(PathStep(node.node_id, _message(node)) for node in nodes)
            paths.append(Path(branch.name, branch.state == tree_pb.BRANCH_STATE_ACTIVE, steps))
            for message, taken in zip(messages, steps, strict=False):
                if message != taken.message:
                    break
                matched.add(taken.node_id)
        return paths


def _message(node: tree_pb.Node) -> Message:
    return Message(node.step.role, node.step.content)


def _unknown_session(error: NotFoundError, tree_id: str, param: str, branch_param: str = "") -> NotFoundError:
    if error.reason is Reason.BRANCH_NOT_FOUND:
        told = f"{branch_param}: session {tree_id!r} has no such branch; GET /v1/sessions/{tree_id} lists them"
        return NotFoundError(told, field=branch_param, reason=error.reason)
    return NotFoundError(
        f"{param}: there is no session {tree_id!r}; make one with POST /v1/sessions",
        field=param,
        reason=Reason.TREE_NOT_FOUND,
    )
