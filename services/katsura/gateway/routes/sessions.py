"""`/v1/sessions`: a session is a tree of the memory service, seen over HTTP."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.domain.errors import InternalError, InvalidArgumentError, NotFoundError
from katsura.domain.ids import TreeId, checked_name
from katsura.gateway.core.fields import Fields, text_of
from katsura.gateway.deps import Deps
from katsura.gateway.incoming import Doorkeeper, caller_of, json_body
from katsura.gateway.turn import Caller
from katsura.sdk import MemoryClient
from katsura.sdk.memory import EMPTY_ROOT

_GOAL_CHARS_MAX = 16_384
_NODE_MAX = 2**62
_PAGE_MAX = 100


def sessions_routes(deps: Deps, door: Doorkeeper) -> APIRouter:
    """The routes, over `deps`."""
    router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

    async def enter(request: Request, session_id: str = "") -> tuple[Caller, MemoryClient]:
        caller = await caller_of(request, deps, door, session_id)
        return caller, deps.memory.acting_for(caller.call, caller.deadline.left_s())

    async def body_of(request: Request) -> Fields:
        return Fields(await json_body(request, deps.config.body_bytes_max))

    @router.post("", response_model=None)
    async def create_session(request: Request) -> Response:
        """Make a session: `id`, `goal`, `pins` and `metadata` are all optional."""
        caller, memory = await enter(request)
        body = await body_of(request)
        name = body.text("id", low=1, high=128)
        goal = body.text("goal", high=_GOAL_CHARS_MAX)
        pins = body.items("pins", lambda value, path: text_of(value, path, low=1, high=_GOAL_CHARS_MAX), high=64)
        labels = body.texts("metadata", high=16, key_chars=64, value_chars=512)
        body.finish()
        made = await memory.create_tree(
            tree_id=checked_name(name, "id") if name else f"s{deps.token()}",
            goal=goal or "",
            pins=pins or (),
            labels=labels,
            request_id=caller.write_id,
        )
        return JSONResponse(_session(made.tree), 201)

    @router.get("", response_model=None)
    async def list_sessions(request: Request) -> Response:
        """A page of sessions, newest first: `limit` and `page` (the `next_page` of the page before)."""
        _, memory = await enter(request)
        limit = request.query_params.get("limit", "20")
        if not limit.isdigit() or not 1 <= int(limit) <= _PAGE_MAX:
            raise InvalidArgumentError(f"limit: expected 1 to {_PAGE_MAX}, got {limit!r}", field="limit")
        page = await memory.list_trees(page_size=int(limit), page_token=request.query_params.get("page", ""))
        data = [_session(tree) for tree in page.trees]
        return JSONResponse({"object": "list", "data": data, "next_page": page.next_page_token or None})

    @router.get("/{session_id}", response_model=None)
    async def get_session(request: Request, session_id: str) -> Response:
        """A session and its branches."""
        _, memory = await enter(request, session_id)
        found = await memory.get_tree(_named(session_id))
        branches = [_branch(branch) for branch in found.branches]
        return JSONResponse(_session(found.tree) | {"branches": branches})

    @router.delete("/{session_id}", response_model=None)
    async def delete_session(request: Request, session_id: str) -> Response:
        """Drop a session, its tree and its stored responses."""
        caller, memory = await enter(request, session_id)
        if caller.call.tenant is None:
            raise InternalError("a caller without a tenant")
        await memory.delete_tree(_named(session_id))
        await deps.responses.drop_tree(caller.call.tenant.tenant_id, TreeId(session_id))
        return JSONResponse({"id": session_id, "object": "session", "deleted": True})

    @router.get("/{session_id}/tree", response_model=None)
    async def get_tree(request: Request, session_id: str) -> Response:
        """Everything that its branches reach: steps, the active summaries, hints."""
        _, memory = await enter(request, session_id)
        return JSONResponse(await whole_tree(memory, _named(session_id)))

    @router.post("/{session_id}/fork", response_model=None)
    async def fork(request: Request, session_id: str) -> Response:
        """A new branch at `at_node` of `branch`: 0 or absent is its head, -1 the empty root."""
        caller, memory = await enter(request, session_id)
        body = await body_of(request)
        branch, name = _branch_name(body, "branch"), _branch_name(body, "name")
        at_node = body.integer("at_node", EMPTY_ROOT, _NODE_MAX)
        body.finish()
        made = await memory.fork(
            _named(session_id), branch=branch, at_node=at_node or 0, new_branch=name, request_id=caller.write_id
        )
        return JSONResponse(_branch(made.branch), 201)

    @router.post("/{session_id}/revise", response_model=None)
    async def revise(request: Request, session_id: str) -> Response:
        """Go back to `restore_after` on a new branch; the old one is abandoned and leaves a hint."""
        caller, memory = await enter(request, session_id)
        body = await body_of(request)
        branch, name = _branch_name(body, "branch"), _branch_name(body, "name")
        restore_after = body.required("restore_after", body.integer("restore_after", 0, _NODE_MAX))
        expected_head = body.integer("expected_head", 0, _NODE_MAX)
        reason = body.text("reason", high=_GOAL_CHARS_MAX) or ""
        body.finish()
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
                "effect": _word(tree_pb.Effect.Name(effect.effect), "EFFECT_"),
                "undo_ref": effect.undo_ref or None,
                "excerpt": effect.excerpt,
            }
            for effect in revised.standing_effects
        ]
        reply = {"branch": _branch(revised.branch), "abandoned": _branch(revised.abandoned)}
        return JSONResponse({**reply, "hint": _node(revised.hint), "standing_effects": standing}, 201)

    return router


async def whole_tree(memory: MemoryClient, session_id: str) -> dict[str, object]:
    """A session with its branches and every node that they reach, by id."""
    found = await memory.get_tree(session_id)
    nodes: dict[int, tree_pb.Node] = {}
    aside: set[int] = set()
    for branch in found.branches:
        if branch.head:
            nodes |= {node.node_id: node for node in await memory.get_whole_path(session_id, branch=branch.name)}
        aside |= {branch.hint, branch.summary_head} - {0}
    while aside:
        read = await memory.get_nodes(session_id, sorted(aside))
        nodes |= {node.node_id: node for node in read}
        before = {node.parent_id if node.HasField("summary") else node.hint.previous_hint for node in read}
        aside = before - nodes.keys() - {0}
    return _session(found.tree) | {
        "branches": [_branch(branch) for branch in found.branches],
        "nodes": [_node(nodes[node_id]) for node_id in sorted(nodes)],
    }


def _named(session_id: str) -> str:
    """A session id from the path: what cannot be one is not found."""
    try:
        return checked_name(session_id, "session_id")
    except InvalidArgumentError:
        raise NotFoundError(f"there is no session {session_id!r}", field="session_id") from None


def _branch_name(body: Fields, field: str) -> str:
    name = body.text(field, low=1, high=128)
    return checked_name(name, field) if name else ""


def _session(tree: tree_pb.Tree) -> dict[str, object]:
    return {
        "id": tree.tree_id,
        "object": "session",
        "created_at": tree.create_time.seconds,
        "updated_at": tree.update_time.seconds,
        "goal": tree.goal or None,
        "pins": list(tree.pins),
        "metadata": dict(tree.labels),
        "default_branch": tree.default_branch,
        "node_count": tree.node_count,
        "branch_count": tree.branch_count,
        "revision": tree.revision,
    }


def _branch(branch: tree_pb.Branch) -> dict[str, object]:
    return {
        "name": branch.name,
        "state": _word(tree_pb.BranchState.Name(branch.state), "BRANCH_STATE_"),
        "head": branch.head,
        "depth": branch.depth,
        "fork_node": branch.fork_node,
        "parent_branch": branch.parent_branch or None,
        "boundary": branch.boundary,
        "summary_head": branch.summary_head,
        "hint": branch.hint,
        "raw_tokens": branch.raw_tokens,
    }


def _node(node: tree_pb.Node) -> dict[str, object]:
    shown: dict[str, object] = {
        "id": node.node_id,
        "parent_id": node.parent_id,
        "branch": node.birth_branch,
        "depth": node.depth,
        "created_at": node.create_time.seconds,
    }
    if node.HasField("step"):
        step = node.step
        kind = _word(tree_pb.StepKind.Name(step.kind), "STEP_KIND_")
        return shown | {"type": "step", "kind": kind, "role": step.role, "content": step.content}
    if node.HasField("summary"):
        summary = node.summary
        return shown | {
            "type": "summary",
            "content": summary.summary_body.text,
            "status": _word(tree_pb.SummaryStatus.Name(summary.status), "SUMMARY_STATUS_"),
            "fidelity": _word(tree_pb.Verdict.Name(summary.fidelity), "VERDICT_"),
            "outcome": _word(tree_pb.Verdict.Name(summary.outcome), "VERDICT_"),
            "covers": [summary.first_covered, summary.last_covered],
            "note": summary.note or None,
        }
    hint = node.hint
    return shown | {
        "type": "hint",
        "content": hint.reason,
        "abandoned_branch": hint.abandoned_branch,
        "abandoned_head": hint.abandoned_head,
        "restored_after": hint.restored_after,
    }


def _word(name: str, prefix: str) -> str:
    """`BRANCH_STATE_ACTIVE` is `active` over HTTP."""
    return name.removeprefix(prefix).lower()
