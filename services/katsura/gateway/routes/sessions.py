"""`/v1/sessions`: a session is a tree of the memory service, seen over HTTP."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.domain.errors import InternalError, InvalidArgumentError, NotFoundError, Reason
from katsura.domain.ids import TreeId, checked_name
from katsura.gateway.core.fields import Fields, text_of
from katsura.gateway.core.session_words import session_words
from katsura.gateway.deps import Deps
from katsura.gateway.incoming import Doorkeeper, caller_of, json_body
from katsura.gateway.routes.session_view import branch_object, node_object, session_object, whole_tree, word
from katsura.gateway.turn import Caller
from katsura.sdk import MemoryClient
from katsura.sdk.memory import EMPTY_ROOT

_GOAL_CHARS_MAX = 16_384
_NODE_MAX = 2**62
_PAGE_MAX = 100


def sessions_routes(deps: Deps, door: Doorkeeper) -> APIRouter:
    """The routes, over `deps`."""
    router, handlers = APIRouter(tags=["sessions"]), Sessions(deps, door)
    for method, path, handler in (
        ("POST", "/v1/sessions", handlers.create),
        ("GET", "/v1/sessions", handlers.list),
        ("GET", "/v1/sessions/{session_id}", handlers.get),
        ("DELETE", "/v1/sessions/{session_id}", handlers.delete),
        ("GET", "/v1/sessions/{session_id}/tree", handlers.tree),
        ("POST", "/v1/sessions/{session_id}/fork", handlers.fork),
        ("POST", "/v1/sessions/{session_id}/revise", handlers.revise),
    ):
        router.add_api_route(path, handler, methods=[method], response_model=None)
    return router


class Sessions:
    """The handlers, over `deps`."""

    def __init__(self, deps: Deps, door: Doorkeeper) -> None:
        self._deps = deps
        self._door = door

    async def create(self, request: Request) -> Response:
        """Make a session: `id`, `goal`, `pins` and `metadata` are all optional."""
        caller, memory = await self._enter(request)
        body = await self._body(request)
        name = body.text("id", low=1, high=128)
        goal = body.text("goal", high=_GOAL_CHARS_MAX)
        pins = body.items("pins", lambda value, path: text_of(value, path, low=1, high=_GOAL_CHARS_MAX), high=64)
        labels = body.texts("metadata", high=16, key_chars=64, value_chars=512)
        body.finish()
        with session_words(name or ""):
            made = await memory.create_tree(
                tree_id=checked_name(name, "id") if name else f"s{self._deps.token()}",
                goal=goal or "",
                pins=pins or (),
                labels=labels,
                request_id=caller.write_id,
            )
        return JSONResponse(session_object(made.tree), 201)

    async def list(self, request: Request) -> Response:
        """A page of sessions, newest first: `limit` and `page` (the `next_page` of the page before)."""
        _, memory = await self._enter(request)
        limit = request.query_params.get("limit", "20")
        if not limit.isdecimal() or len(limit) > len(str(_PAGE_MAX)) or not 1 <= int(limit) <= _PAGE_MAX:
            raise InvalidArgumentError(f"limit: expected 1 to {_PAGE_MAX}, got {limit!r}", field="limit")
        with session_words():
            page = await memory.list_trees(page_size=int(limit), page_token=request.query_params.get("page", ""))
        data = [session_object(tree) for tree in page.trees]
        return JSONResponse({"object": "list", "data": data, "next_page": page.next_page_token or None})

    async def get(self, request: Request, session_id: str) -> Response:
        """A session and its branches."""
        _, memory = await self._enter(request, session_id)
        with session_words(session_id):
            found = await memory.get_tree(_named(session_id))
        branches = [branch_object(branch) for branch in found.branches]
        return JSONResponse(session_object(found.tree) | {"branches": branches})

    async def delete(self, request: Request, session_id: str) -> Response:
        """Drop a session, its tree and its stored responses."""
        caller, memory = await self._enter(request, session_id)
        if caller.call.tenant is None:
            raise InternalError("a caller without a tenant")
        with session_words(session_id):
            await memory.delete_tree(_named(session_id))
        await self._deps.responses.drop_tree(caller.call.tenant.tenant_id, TreeId(session_id))
        return JSONResponse({"id": session_id, "object": "session", "deleted": True})

    async def tree(self, request: Request, session_id: str) -> Response:
        """Everything that its branches reach: steps, the active summaries, hints."""
        _, memory = await self._enter(request, session_id)
        with session_words(session_id):
            return JSONResponse(await whole_tree(memory, _named(session_id)))

    async def fork(self, request: Request, session_id: str) -> Response:
        """A new branch at `at_node` of `branch`: 0 or absent is its head, -1 the empty root."""
        caller, memory = await self._enter(request, session_id)
        body = await self._body(request)
        branch, name = _branch_name(body, "branch"), _branch_name(body, "name")
        at_node = body.integer("at_node", EMPTY_ROOT, _NODE_MAX)
        body.finish()
        with session_words(session_id, "at_node"):
            made = await memory.fork(
                _named(session_id), branch=branch, at_node=at_node or 0, new_branch=name, request_id=caller.write_id
            )
        return JSONResponse(branch_object(made.branch), 201)

    async def revise(self, request: Request, session_id: str) -> Response:
        """Go back to `restore_after` on a new branch; the old one is abandoned and leaves a hint."""
        caller, memory = await self._enter(request, session_id)
        body = await self._body(request)
        branch, name = _branch_name(body, "branch"), _branch_name(body, "name")
        restore_after = body.required("restore_after", body.integer("restore_after", 0, _NODE_MAX))
        expected_head = body.integer("expected_head", 0, _NODE_MAX)
        reason = body.text("reason", high=_GOAL_CHARS_MAX) or ""
        body.finish()
        with session_words(session_id, "restore_after"):
            revised = await memory.revise(
                _named(session_id),
                restore_after=restore_after,
                reason=reason,
                branch=branch,
                expected_head=expected_head,
                new_branch=name,
                request_id=caller.write_id,
            )
        standing = [
            {
                "node_id": effect.node_id,
                "effect": word(tree_pb.Effect.Name(effect.effect), "EFFECT_"),
                "undo_ref": effect.undo_ref or None,
                "excerpt": effect.excerpt,
            }
            for effect in revised.standing_effects
        ]
        reply = {"branch": branch_object(revised.branch), "abandoned": branch_object(revised.abandoned)}
        return JSONResponse({**reply, "hint": node_object(revised.hint), "standing_effects": standing}, 201)

    async def _enter(self, request: Request, session_id: str = "") -> tuple[Caller, MemoryClient]:
        caller = await caller_of(request, self._deps, self._door, session_id)
        return caller, self._deps.memory.acting_for(caller.call, caller.deadline.left_s())

    async def _body(self, request: Request) -> Fields:
        return Fields(await json_body(request, self._deps.config.body_bytes_max))


def _named(session_id: str) -> str:
    """A session id from the path: what cannot be one is not found."""
    try:
        return checked_name(session_id, "session_id")
    except InvalidArgumentError:
        raise NotFoundError(
            f"there is no session {session_id!r}", field="session_id", reason=Reason.TREE_NOT_FOUND
        ) from None


def _branch_name(body: Fields, field: str) -> str:
    name = body.text(field, low=1, high=128)
    return checked_name(name, field) if name else ""
