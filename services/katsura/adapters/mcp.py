"""An MCP server: the operations of a tree as tools for any MCP client (`katsura mcp`).

Tools take and give plain values, short enough for a model to type; failures say what is wrong and what to do. A write
may name the head that its writer has seen (`expected_head`), and is then refused where somebody else was quicker.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from importlib import metadata
from typing import Any, Final, ParamSpec, TypeVar

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations

from katsura.api.memory.v1 import block_service_pb2 as block_pb
from katsura.api.memory.v1 import memory_contents_pb2 as contents_pb
from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1 import memory_service_pb2 as pb
from katsura.domain.errors import KatsuraError
from katsura.sdk.blocks import TENANT, BlockClient, of_agent, of_user
from katsura.sdk.connection import Connection
from katsura.sdk.memory import MemoryClient, step

P = ParamSpec("P")
R = TypeVar("R")
Json = dict[str, Any]

_INSTRUCTIONS: Final = (
    "Your memory as a tree. Append what you do; compress when a subgoal is done; when an approach failed, revise to "
    "the last good step and say why; fork to try two ways. context gives the prompt to go on from. Node ids are "
    "integers."
)

_BRANCH_STATES: Final = {
    name.removeprefix("BRANCH_STATE_").lower(): state for name, state in tree_pb.BranchState.items() if state
}


class TreeTools:
    """The tools; each public method is one, its docstring what the model reads.

    Args:
        connection: to the memory service, as whoever calls right now.
    """

    def __init__(self, connection: Callable[[], Connection]) -> None:
        self._connection = connection

    @property
    def _memory(self) -> MemoryClient:
        return MemoryClient(self._connection())

    @property
    def _blocks(self) -> BlockClient:
        return BlockClient(self._connection())

    async def create_tree(self, goal: str, tree_id: str = "", pins: Sequence[str] = ()) -> Json:
        """Begin a tree. `pins` are constraints that every context repeats; `tree_id` is chosen for you if empty."""
        made = await self._memory.create_tree(tree_id=tree_id, goal=goal, pins=pins)
        return {"tree_id": made.tree.tree_id, "branch": made.branch.name}

    async def list_trees(self, page_size: int = 20) -> Json:
        """The newest trees with their goals."""
        trees = (await self._memory.list_trees(page_size=page_size)).trees
        return {"trees": [{"tree_id": t.tree_id, "goal": t.goal, "nodes": t.node_count} for t in trees]}

    async def show_tree(self, tree_id: str, branch: str = "", last: int = 50) -> Json:
        """A tree's goal and branches, and the last steps of one branch (default: the tree's default branch)."""
        tree = await self._memory.get_tree(tree_id)
        path = await self._memory.get_path(tree_id, branch=branch, page_size=last)
        return {
            "goal": tree.tree.goal,
            "pins": list(tree.tree.pins),
            "branches": [_branch(each) for each in tree.branches],
            "branch": path.branch.name,
            "steps": [_node(node) for node in path.nodes],
        }

    async def append(
        self, tree_id: str, role: str, content: str, branch: str = "", expected_head: int | None = None
    ) -> Json:
        """Append a step; `role` is user, assistant, tool or system."""
        grown = await self._memory.grow(tree_id, [step(role, content)], branch=branch, expected_head=expected_head)
        return {
            "node_id": grown.node_ids[0],
            "branch": grown.branch.name,
            "head": grown.branch.head,
            "compress_due": grown.compress_due,
        }

    async def context(self, tree_id: str, budget_tokens: int = 4000, branch: str = "") -> Json:
        """What to go on from, under a token budget: goal and pins, summaries, hints from failed tries, latest steps."""
        made = await self._memory.assemble_context(tree_id, branch=branch, budget_tokens=budget_tokens)
        names = {value: name.removeprefix("SEGMENT_KIND_").lower() for name, value in pb.SegmentKind.items()}
        segments = [
            {"kind": names[s.kind], "role": s.role, "content": s.content, "node_id": s.node_id} for s in made.segments
        ]
        return {"total_tokens": made.total_tokens, "segments": segments}

    async def compress(
        self, tree_id: str, summary: str = "", facts: Sequence[str] = (), open_obligations: Sequence[str] = (),
        branch: str = "",
    ) -> Json:  # fmt: skip
        """Close the steps since the last summary with yours, or with one made for you; it is checked before use."""
        body = tree_pb.SummaryBody(text=summary, facts=facts, open_obligations=open_obligations) if summary else None
        done = await self._memory.compress(tree_id, branch=branch, summary=body)
        node = done.summary.summary
        return {
            "node_id": done.summary.node_id,
            "status": tree_pb.SummaryStatus.Name(node.status).removeprefix("SUMMARY_STATUS_").lower(),
            "text": node.summary_body.text,
            "note": node.note,
        }

    async def revise(
        self, tree_id: str, restore_after: int, reason: str, branch: str = "", expected_head: int | None = None
    ) -> Json:
        """Go back to a step (0: the beginning) on a new branch; what came after is left, its lesson kept as a hint."""
        done = await self._memory.revise(
            tree_id, restore_after=restore_after, reason=reason, branch=branch, expected_head=expected_head
        )
        effects = _effects(done.standing_effects)
        return {"branch": done.branch.name, "abandoned": done.abandoned.name, "standing_effects": effects}

    async def fork(self, tree_id: str, at_node: int = 0, branch: str = "", new_branch: str = "") -> Json:
        """Begin a branch at a step of another (0: its head, -1: the empty root); nothing is copied."""
        made = await self._memory.fork(tree_id, branch=branch, at_node=at_node, new_branch=new_branch)
        return _branch(made.branch)

    async def update_branch(
        self, tree_id: str, branch: str = "", state: str = "", label: str | None = None, note: str | None = None
    ) -> Json:
        """Mark a branch: frozen (kept as it is, takes no steps), merged (done), abandoned, or active again; call it
        something (`label`), say something of it (`note`)."""
        if state not in ("", *_BRANCH_STATES):
            raise ToolError(f"state {state!r}: send one of {', '.join(_BRANCH_STATES)}, or none to keep it")
        meant = _BRANCH_STATES.get(state, tree_pb.BRANCH_STATE_UNSPECIFIED)
        done = await self._memory.update_branch(tree_id, meant, branch=branch, label=label, note=note)
        return {**_branch(done.branch), "standing_effects": _effects(done.standing_effects)}

    async def merge(
        self, tree_id: str, source: str, branch: str = "", text: str = "", close_source: bool = False
    ) -> Json:
        """Bring the work of branch `source` to a branch, as one step that tells of it (in your words, if `text`).
        `close_source`: the branch is done."""
        made = await self._memory.merge(tree_id, source, branch=branch, text=text, close_source=close_source)
        return {"steps": [_node(node) for node in made.steps]}

    async def search(self, tree_id: str, query: str, branch: str = "", whole_tree: bool = False) -> Json:
        """Nodes that say every word of `query`, newest first: on a branch's path, or in the whole tree."""
        scope = contents_pb.SEARCH_SCOPE_TREE if whole_tree else contents_pb.SEARCH_SCOPE_PATH
        hits = (await self._memory.search(tree_id, query, branch=branch, scope=scope)).hits
        return {"hits": [{"node_id": hit.node.node_id, "excerpt": hit.excerpt} for hit in hits]}

    async def set_slot(self, tree_id: str, key: str, value: str, branch: str = "") -> Json:
        """Set a named value of a branch: forks inherit it, contexts show it."""
        node = await self._memory.set_slot(tree_id, key, value, branch=branch)
        return {"node_id": node.node_id}

    async def get_slots(self, tree_id: str, branch: str = "") -> Json:
        """The named values of a branch."""
        return dict(await self._memory.get_slots(tree_id, branch=branch))

    async def remember(self, name: str, text: str, user: str = "", agent: str = "") -> Json:
        """Keep a text beyond any tree: for one user, for one agent, or for everybody (neither named)."""
        block = await self._blocks.put(_owner(user, agent), name, text.encode())
        return {"name": block.name, "version": block.version}

    async def recall(self, query: str = "", user: str = "", agent: str = "", page_size: int = 20) -> Json:
        """Texts that were kept and say every word of `query` (empty: all)."""
        page = await self._blocks.list_page(_owner(user, agent), query=query, page_size=page_size)
        return {"found": [{"name": b.name, "text": b.value.decode(errors="replace")} for b in page.blocks]}


def server_of(tools: TreeTools) -> MCPServer[Any]:
    """An MCP server that offers `tools`."""
    server = MCPServer[Any](
        "katsura", instructions=_INSTRUCTIONS, version=metadata.version("katsura"), log_level="WARNING"
    )
    reads = {"list_trees", "show_tree", "context", "search", "get_slots", "recall"}
    for name, tool in vars(TreeTools).items():
        if not name.startswith("_"):
            hints = ToolAnnotations(read_only_hint=name in reads, destructive_hint=False)
            server.add_tool(_telling(getattr(tools, tool.__name__)), annotations=hints)
    return server


def _telling(tool: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """`tool`, whose failures reach the model in their own words."""

    @functools.wraps(tool)
    async def call(*args: P.args, **named: P.kwargs) -> R:
        try:
            return await tool(*args, **named)
        except KatsuraError as error:
            raise ToolError(error.message) from error

    return call


def _owner(user: str, agent: str) -> block_pb.BlockOwner:
    if user and agent:
        raise ToolError("user, agent: name one of them, or neither")
    return of_user(user) if user else of_agent(agent) if agent else TENANT


def _branch(branch: tree_pb.Branch) -> Json:
    state = tree_pb.BranchState.Name(branch.state).removeprefix("BRANCH_STATE_").lower()
    said = {"label": branch.label, "note": branch.note}
    shown = {"name": branch.name, "state": state, "head": branch.head, "parent_branch": branch.parent_branch}
    return {**shown, **{name: text for name, text in said.items() if text}}


def _effects(effects: Iterable[tree_pb.StandingEffect]) -> list[Json]:
    return [{"node_id": e.node_id, "excerpt": e.excerpt, "undo": e.undo_ref} for e in effects]


def _node(node: tree_pb.Node) -> Json:
    call = node.step.tool_call
    said = f"{call.name}({call.arguments_json})" if call.name and not node.step.content else node.step.content
    return {"node_id": node.node_id, "role": node.step.role, "content": said}
