"""`katsura mcp` as an MCP client sees it: a real process on pipes, the real client library."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

TOOLS = {
    "create_tree", "list_trees", "show_tree", "append", "context", "compress", "revise", "fork",
    "update_branch", "merge", "search",
    "set_slot", "get_slots", "remember", "recall",
}  # fmt: skip


@asynccontextmanager
async def over_http(address: str, *words: str) -> AsyncIterator[str]:
    """`katsura mcp --http 0` as a process of its own; its URL."""
    command = [sys.executable, "-m", "katsura.cli.main", "mcp", "--memory", address, "--http", "0", *words]
    environment = {"PATH": os.environ["PATH"]}
    process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            said = (await process.stderr.readline()).decode()
        assert "MCP is served at " in said, said + (await process.stderr.read()).decode()
        yield said.split()[-1]
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def client_of(url: str, key: str, verify: ssl.SSLContext | bool = True) -> AsyncIterator[Client]:
    """A client that sends `key` with every request."""
    headers = {"authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(headers=headers, verify=verify, timeout=60) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


async def test_over_http_each_request_speaks_for_the_tenant_of_its_own_key(
    memory_key: tuple[str, str], other_key: str
) -> None:
    async with over_http(memory_key[0]) as url:
        async with client_of(url, memory_key[1]) as mine, client_of(url, other_key) as other:
            assert {tool.name for tool in (await mine.list_tools()).tools} == TOOLS
            made = await mine.call_tool("create_tree", {"goal": "Book a room", "tree_id": "mcp-http"})
            assert not made.is_error, made.content
            grown = await mine.call_tool("append", {"tree_id": "mcp-http", "role": "user", "content": "Find a room."})
            assert dict(grown.structured_content or {})["head"] == 1
            strange = await other.call_tool("show_tree", {"tree_id": "mcp-http"})
            assert strange.is_error
            assert "does not exist" in str(strange.content)
        async with httpx2.AsyncClient(timeout=60) as http:
            refused = await http.post(url, json={})
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert "katsura key create" in refused.text


async def test_over_a_network_http_is_encrypted_or_refused(memory_key: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="--tls-cert"):
        async with over_http(memory_key[0], "--host", "0.0.0.0"):
            pass
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    async with (
        over_http(memory_key[0], "--tls-cert", str(certificate), "--tls-key", str(key)) as url,
        client_of(url, memory_key[1], trusted) as client,
    ):
        assert url.startswith("https://")
        assert not (await client.call_tool("list_trees", {})).is_error


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
        kept = await call("update_branch", tree_id="mcp", branch="side", state="frozen", label="spare")
        assert (kept["state"], kept["label"]) == ("frozen", "spare")
        late = await client.call_tool("append", {"tree_id": "mcp", "role": "user", "content": "x", "branch": "side"})
        assert late.is_error
        assert "make it ACTIVE again" in str(late.content)
        merged = await call("merge", tree_id="mcp", source="side", close_source=True)
        assert "breakfast" in merged["steps"][0]["content"]
        assert (await call("search", tree_id="mcp", query="900"))["hits"] == []
        assert (await call("search", tree_id="mcp", query="breakfast"))["hits"]
        shown = await call("show_tree", tree_id="mcp")
        states = {branch["name"]: branch["state"] for branch in shown["branches"]}
        assert (states["main"], states["side"]) == ("abandoned", "merged")
        assert "mcp" in [tree["tree_id"] for tree in (await call("list_trees"))["trees"]]
        await call("remember", name="ada/seat", text="aisle", user="ada")
        found = await call("recall", query="AISLE", user="ada")
        assert found == {"found": [{"name": "ada/seat", "text": "aisle"}]}
