"""`katsura mcp` as an MCP client sees it: a real process on pipes, the real client library."""

from __future__ import annotations

import os
import sys
from typing import Any

from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

TOOLS = {
    "create_tree", "list_trees", "show_tree", "append", "context", "compress", "revise", "fork", "merge", "search",
    "set_slot", "get_slots", "remember", "recall",
}  # fmt: skip


async def test_a_client_lives_through_a_tree(memory_key: tuple[str, str]) -> None:
    command = [sys.executable, "-m", "katsura.cli.main", "mcp", "--memory", memory_key[0]]
    environment = {"PATH": os.environ["PATH"], "KATSURA_API_KEY": memory_key[1]}
    async with Client(
        stdio_client(StdioServerParameters(command=command[0], args=command[1:], env=environment))
    ) as client:

        async def call(tool: str, /, **arguments: Any) -> dict[str, Any]:
            answer = await client.call_tool(tool, arguments)
            assert not answer.is_error, answer.content
            return dict(answer.structured_content or {})

        offered = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(offered) == TOOLS
        assert offered["append"].input_schema["required"] == ["tree_id", "role", "content"]
        assert "last good step" in str(client.instructions)
        await call("create_tree", goal="Book a room", tree_id="mcp", pins=["at most 450 USD"])
        first = await call("append", tree_id="mcp", role="user", content="Find a room in Kyoto.")
        await call("append", tree_id="mcp", role="assistant", content="H-7 for 900 USD", expected_head=first["node_id"])
        lost = await client.call_tool(
            "append", {"tree_id": "mcp", "role": "user", "content": "late", "expected_head": first["node_id"]}
        )
        assert lost.is_error
        assert "head" in str(lost.content)
        revised = await call("revise", tree_id="mcp", restore_after=first["node_id"], reason="too dear")
        assert revised["abandoned"] == "main"
        await call("append", tree_id="mcp", role="assistant", content="H-8 for 90 USD")
        await call("set_slot", tree_id="mcp", key="hotel", value="H-8")
        assert await call("get_slots", tree_id="mcp") == {"hotel": "H-8"}
        summary = await call("compress", tree_id="mcp", summary="Found H-8 for 90 USD in Kyoto.")
        assert summary["status"] == "valid"
        context = await call("context", tree_id="mcp")
        assert {"pin", "summary", "slot"} <= {segment["kind"] for segment in context["segments"]}
        side = await call("fork", tree_id="mcp", new_branch="side")
        await call("append", tree_id="mcp", role="assistant", content="breakfast is 12 USD", branch=side["name"])
        merged = await call("merge", tree_id="mcp", source="side")
        assert "breakfast" in merged["steps"][0]["content"]
        assert (await call("search", tree_id="mcp", query="900"))["hits"] == []
        assert (await call("search", tree_id="mcp", query="breakfast"))["hits"]
        shown = await call("show_tree", tree_id="mcp")
        assert {branch["name"]: branch["state"] for branch in shown["branches"]}["main"] == "abandoned"
        assert "mcp" in [tree["tree_id"] for tree in (await call("list_trees"))["trees"]]
        await call("remember", name="ada/seat", text="aisle", user="ada")
        found = await call("recall", query="AISLE", user="ada")
        assert found == {"found": [{"name": "ada/seat", "text": "aisle"}]}
