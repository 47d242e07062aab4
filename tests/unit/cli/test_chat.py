"""What `katsura chat` asks for."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import httpx
import pytest
from rich.console import Console

from katsura.cli.chat import chat
from katsura.cli.client import Gateway
from katsura.cli.exit import Exit
from katsura.cli.main import build_parser

TREE = {"id": "s", "default_branch": "main", "nodes": []}
MAIN = {"name": "main", "state": "active", "head": 0, "fork_node": 0, "parent_branch": None}
CHUNK = {"choices": [{"delta": {"content": "Oslo."}, "finish_reason": "stop"}]}


def test_answers_are_drawn_as_freely_as_the_person_said_and_not_as_the_api_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, object]] = []
    lines: Iterator[str] = iter(["What is the capital of Norway?"])

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=TREE | {"branches": [MAIN]})
        asked.append(json.loads(request.content))
        return httpx.Response(200, text=f"data: {json.dumps(CHUNK)}\n\ndata: [DONE]\n\n")

    def read(*_: object) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    typed = build_parser({}).parse_args(["chat", "s"])
    console = Console(file=io.StringIO())
    monkeypatch.setattr(console, "input", read)
    gateway = Gateway("http://gateway", transport=httpx.MockTransport(answer))
    assert chat(gateway, "s", "", "m", "", typed.temperature, console) is Exit.OK
    assert [(a["temperature"], a["messages"]) for a in asked] == [
        (0.2, [{"role": "user", "content": "What is the capital of Norway?"}])
    ]
