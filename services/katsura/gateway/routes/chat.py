"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from katsura.domain.errors import InvalidArgumentError, KatsuraError
from katsura.gateway.core import chat_reply as reply
from katsura.gateway.core.budget import Limit, answer_reserve
from katsura.gateway.core.chat_request import BRANCH_KEY, SESSION_KEY, ChatRequest, Message, read_chat_request
from katsura.gateway.core.envelope import envelope
from katsura.gateway.core.prompt import Part
from katsura.gateway.core.sse import DONE, event
from katsura.gateway.deps import Deps
from katsura.gateway.generation import Shown
from katsura.gateway.incoming import Doorkeeper, caller_of, in_session, json_body, named_once
from katsura.gateway.streaming import EventStream, until_gone
from katsura.gateway.trees import Place, Trees
from katsura.gateway.turn import Answered, Turn, Wish, choose_model, plain_prompt, tree_prompt, trees_of

SESSION_HEADER = "x-session-id"
BRANCH_HEADER = "x-session-branch"


@dataclass(frozen=True, slots=True)
class SessionName:
    """The session that a request names; empty for none. `param` and `branch_param` are how the client named them.

    A named branch takes the messages as what comes next on it. Without one they are the whole conversation, and the
    tree decides by the longest path that they continue.
    """

    tree_id: str
    branch: str
    param: str
    branch_param: str


def read_session(request: Request, metadata: dict[str, str]) -> SessionName:
    """The session of a request, by header or by metadata."""
    tree_id, param = named_once(request, SESSION_HEADER, metadata, SESSION_KEY)
    branch, branch_param = named_once(request, BRANCH_HEADER, metadata, BRANCH_KEY)
    if branch and not tree_id:
        raise InvalidArgumentError(f"{branch_param} needs a session; send {SESSION_HEADER} too", field=branch_param)
    return SessionName(tree_id, branch, param, branch_param)


def chat_routes(deps: Deps, door: Doorkeeper) -> APIRouter:
    """The route, over `deps`."""
    router = APIRouter(tags=["chat"])

    @router.post("/v1/chat/completions", response_model=None)
    async def create_chat_completion(request: Request) -> Response:
        """Answer a conversation, whole or as a stream."""
        started_s = deps.clock.monotonic_s()
        caller = await caller_of(request, deps, door)
        body = read_chat_request(await json_body(request, deps.config.body_bytes_max))
        session = read_session(request, dict(body.metadata))
        caller = in_session(caller, session.tree_id)
        model = await choose_model(deps, caller, body.model, session.tree_id)
        wish = Wish(body.sampling, Limit(body.max_new_tokens), body.stop, body.choice_count)
        answer_reserve(model.revision.context_tokens, wish.limit)
        place: Place | None = None
        if session.tree_id:
            trees = trees_of(deps, caller)
            place = await open_session(trees, session, body.messages)
            prompt = await tree_prompt(model, trees, place, wish)
        else:
            prompt = await plain_prompt(model, [Part(message) for message in body.messages])
        turn = Turn(deps, caller, model, wish, prompt, place, started_s)
        head = reply.ReplyHead(
            f"chatcmpl-{deps.token()}",
            deps.clock.wall_ms() // 1000,
            model.name,
            f"fp_{model.revision.revision_id[:16]}",
        )
        headers = {} if place is None else {SESSION_HEADER: place.tree_id, BRANCH_HEADER: place.branch}
        if body.stream:
            return EventStream(_stream(turn, head, body), deps.config.keepalive_s, _failed, headers)
        whole = await until_gone(request.receive, _whole(turn, head))
        return JSONResponse(whole, headers=headers)

    return router


async def open_session(trees: Trees, session: SessionName, messages: tuple[Message, ...]) -> Place:
    """Grow the turn into the session's tree."""
    if not session.branch:
        return await trees.match(session.tree_id, messages, session.param)
    place = await trees.find(session.tree_id, session.branch, session.param, session.branch_param)
    return await trees.append(place, messages)


async def _whole(turn: Turn, head: reply.ReplyHead) -> dict[str, object]:
    logprobs: list[list[dict[str, object]]] = [[] for _ in turn.choices]
    ended: dict[int, Answered] = {}
    async with aclosing(turn.events()) as events:
        async for found in events:
            if isinstance(found, Shown):
                logprobs[found.index] += turn.logprobs(found.piece) or []
            else:
                ended[found.index] = found
    wanted = turn.logprobs_wanted
    choices = [
        reply.ReplyChoice(
            choice.text, ended[index].finish_reason, logprobs[index] if wanted else None, _node(ended[index].place)
        )
        for index, choice in enumerate(turn.choices)
    ]
    return reply.completion(head, choices, turn.usage)


def _failed(error: KatsuraError) -> bytes:
    """A stream that breaks off says why, and does not say that it is done."""
    return event(envelope(error))


async def _stream(turn: Turn, head: reply.ReplyHead, body: ChatRequest) -> AsyncGenerator[bytes, None]:
    begun = False
    async with aclosing(turn.events()) as events:
        async for found in events:
            if not begun:
                begun = True
                for index in range(body.choice_count):
                    yield event(reply.first_chunk(head, index))
            if isinstance(found, Shown):
                yield event(reply.text_chunk(head, found.index, found.piece.text, turn.logprobs(found.piece)))
            else:
                yield event(reply.finish_chunk(head, found.index, found.finish_reason, _node(found.place)))
    if body.include_usage:
        yield event(reply.usage_chunk(head, turn.usage))
    yield DONE


def _node(place: Place | None) -> tuple[str, str, int] | None:
    return None if place is None else (place.tree_id, place.branch, place.head)
