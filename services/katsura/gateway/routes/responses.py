"""`/v1/responses`: a response is a node of a tree, its id the door to continue from there.

Two continuations of one response are two branches. `instructions` lead the prompt of their own call and are not kept,
`store: false` keeps nothing at all.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from katsura.domain.errors import InternalError, InvalidArgumentError, KatsuraError, NotFoundError, Reason
from katsura.domain.ids import BranchName, NodeId, TenantId, TreeId
from katsura.gateway.core import responses_reply as reply
from katsura.gateway.core.budget import Limit, answer_reserve
from katsura.gateway.core.chat_request import Message
from katsura.gateway.core.envelope import public_message
from katsura.gateway.core.prompt import Part
from katsura.gateway.core.response_ids import parse_response_id, response_id, tree_id_for_responses
from katsura.gateway.core.responses_request import ResponsesRequest, read_responses_request
from katsura.gateway.core.sse import event
from katsura.gateway.deps import Deps
from katsura.gateway.generation import Shown
from katsura.gateway.incoming import Doorkeeper, caller_of, in_session, json_body
from katsura.gateway.routes.chat import SessionName, open_session, read_session
from katsura.gateway.streaming import EventStream, until_gone
from katsura.gateway.trees import MADE_BY, MADE_BY_RESPONSES, Place, Trees
from katsura.gateway.turn import Answered, Caller, Turn, Wish, choose_model, plain_prompt, tree_prompt, trees_of
from katsura.state.responses import StoredResponse


def responses_routes(deps: Deps, door: Doorkeeper) -> APIRouter:
    """The routes, over `deps`."""
    router = APIRouter(tags=["responses"])

    @router.post("/v1/responses", response_model=None)
    async def create_response(request: Request) -> Response:
        """Answer, and keep the turn unless `store` is false."""
        caller = await caller_of(request, deps, door)
        body = read_responses_request(await json_body(request, deps.config.body_bytes_max))
        session = read_session(request, dict(body.metadata))
        running = await _begin(deps, caller, body, session)
        if body.stream:
            return EventStream(running.stream(), deps.config.keepalive_s, running.failed)
        return JSONResponse(await until_gone(request.receive, running.whole()))

    @router.get("/v1/responses/{response_id}", response_model=None)
    async def get_response(request: Request, response_id: str) -> Response:
        """A stored response, its text read from the tree."""
        caller = await caller_of(request, deps, door)
        if request.query_params.get("stream", "false") == "true":
            raise InvalidArgumentError("stream: a stored response is not streamed again", field="stream")
        tree_id, _, stored = await _stored(deps, caller, response_id, "response_id")
        memory = deps.memory.acting_for(caller.call, caller.deadline.left_s())
        try:
            (node,) = await memory.get_nodes(tree_id, [stored.node_id])
        except NotFoundError:
            raise _unknown(response_id, "response_id") from None
        kept = json.loads(stored.body_json)
        return JSONResponse(reply.with_text(kept["response"], kept["item_id"], node.step.content))

    @router.delete("/v1/responses/{response_id}", response_model=None)
    async def delete_response(request: Request, response_id: str) -> Response:
        """Forget a response; the last one of a tree that was made for responses takes the tree with it."""
        caller = await caller_of(request, deps, door)
        tree_id, token, _ = await _stored(deps, caller, response_id, "response_id")
        left = await deps.responses.delete(_tenant_id(caller), tree_id, token)
        if left is None:
            raise _unknown(response_id, "response_id")
        memory = deps.memory.acting_for(caller.call, caller.deadline.left_s())
        if left == 0 and (await memory.get_tree(tree_id)).tree.labels.get(MADE_BY) == MADE_BY_RESPONSES:
            await memory.delete_tree(tree_id)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})

    return router


async def _begin(deps: Deps, caller: Caller, body: ResponsesRequest, session: SessionName) -> _Running:
    """Everything up to the first token; see `_open` for where the turn goes."""
    started_s = deps.clock.monotonic_s()
    if session.tree_id and not body.store:
        raise InvalidArgumentError("store: false keeps nothing, so no session can be named with it", field="store")
    previous: Place | None = None
    if body.previous_response_id:
        tree_id, _, stored = await _stored(deps, caller, body.previous_response_id, "previous_response_id")
        previous = Place(tree_id, stored.branch, stored.node_id)
        if session.tree_id not in ("", tree_id):
            raise InvalidArgumentError(
                f"{session.param} names another session than previous_response_id belongs to", field=session.param
            )
    caller = in_session(caller, previous.tree_id if previous else session.tree_id)
    model = await choose_model(deps, caller, body.model, caller.call.session_id)
    wish = Wish(body.sampling, Limit(body.max_new_tokens, "max_output_tokens", "input"))
    answer_reserve(model.revision.context_tokens, wish.limit)
    before = [Part(Message("system", body.instructions))] if body.instructions else []
    trees, token = trees_of(deps, caller), deps.token()
    place: Place | None = None
    if body.store:
        place = await _open(trees, body, session, previous, token)
        caller = in_session(caller, place.tree_id)
        prompt = await tree_prompt(model, trees, place, wish, before)
    else:
        history = await trees.path(previous) if previous else []
        prompt = await plain_prompt(model, [*before, *history, *(Part(message) for message in body.messages)])
    head = reply.ResponseHead(
        response_id(token, TreeId(place.tree_id) if place else None),
        f"msg_{token}",
        deps.clock.wall_ms() // 1000,
        model.name,
        body,
    )
    return _Running(
        deps, caller, Turn(deps, caller, model, wish, prompt, place, started_s), head, reply.Events(head), token
    )


async def _open(
    trees: Trees, body: ResponsesRequest, session: SessionName, previous: Place | None, token: str
) -> Place:
    """Grow the input: after the previous response, into the named session, or into a tree of its own."""
    if previous is not None:
        return await trees.append(previous, body.messages, fork_if_moved=True)
    if session.tree_id:
        return await open_session(trees, session, body.messages)
    return await trees.append(await trees.make(tree_id_for_responses(token)), body.messages)


@dataclass(frozen=True, slots=True)
class _Running:
    """A response whose turn is open; `events` numbers those of its stream."""

    deps: Deps
    caller: Caller
    turn: Turn
    head: reply.ResponseHead
    events: reply.Events
    token: str

    async def whole(self) -> dict[str, object]:
        """The finished response."""
        logprobs: list[dict[str, object]] = []
        answered: Answered | None = None
        async with aclosing(self.turn.events()) as events:
            async for found in events:
                if isinstance(found, Shown):
                    logprobs += self.turn.logprobs(found.piece) or []
                else:
                    answered = found
        return await self._finished(answered, logprobs)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The events of the response, encoded."""
        logprobs: list[dict[str, object]] = []
        answered: Answered | None = None
        begun = False
        async with aclosing(self.turn.events()) as events:
            async for found in events:
                if not begun:
                    begun = True
                    for name, data in self.events.opening():
                        yield event(data, name)
                if isinstance(found, Shown):
                    piece = self.turn.logprobs(found.piece)
                    logprobs += piece or []
                    name, data = self.events.delta(found.piece.text, piece)
                    yield event(data, name)
                else:
                    answered = found
        response = await self._finished(answered, logprobs)
        for name, data in self.events.closing(response, self.turn.choices[0].text, logprobs):
            yield event(data, name)

    def failed(self, error: KatsuraError) -> bytes:
        """The event that ends a stream which broke off."""
        name, data = self.events.failure(public_message(error))
        return event(data, name)

    async def _finished(self, answered: Answered | None, logprobs: list[dict[str, object]]) -> dict[str, object]:
        """The response object, kept first where it is to be kept."""
        if answered is None:
            raise InternalError("a response ended without an answer")
        shown = logprobs if self.turn.logprobs_wanted else None
        response = reply.finished(self.head, self.turn.choices[0].text, answered.finish_reason, shown, self.turn.usage)
        place = answered.place
        if place is not None:
            kept = {"item_id": self.head.item_id, "response": reply.without_text(response)}
            stored = StoredResponse(BranchName(place.branch), NodeId(place.head), json.dumps(kept))
            await self.deps.responses.put(_tenant_id(self.caller), TreeId(place.tree_id), self.token, stored)
        return response


async def _stored(deps: Deps, caller: Caller, text: str, param: str) -> tuple[TreeId, str, StoredResponse]:
    """Tree, token and record of a stored response; unknown, deleted and another tenant's are all the same."""
    parsed = parse_response_id(text)
    stored = None if parsed is None else await deps.responses.get(_tenant_id(caller), *parsed)
    if parsed is None or stored is None:
        raise _unknown(text, param)
    return *parsed, stored


def _unknown(text: str, param: str) -> NotFoundError:
    return NotFoundError(f"{param}: there is no response {text!r}", field=param, reason=Reason.RESPONSE_NOT_FOUND)


def _tenant_id(caller: Caller) -> TenantId:
    if caller.call.tenant is None:
        raise InternalError("a caller without a tenant")
    return caller.call.tenant.tenant_id
