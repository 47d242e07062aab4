"""`katsura up`, `status`, `chat`, `tree`, `key`, `doctor`: what a person types, on a tiny model, all processes real."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from katsura.cli.exit import Exit

pytestmark = pytest.mark.xdist_group("up")
Katsura = Callable[..., subprocess.CompletedProcess[str]]


def ask(url: str, text: str, **more: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_one_command_serves_and_ctrl_c_leaves_nothing(serve: Callable[..., Any], katsura: Katsura) -> None:
    house = serve().up()
    assert ask(house.url, "hello")["choices"][0]["message"]["role"] == "assistant"
    status = katsura("status", "--json")
    assert status.returncode == Exit.OK, status.stdout
    processes = json.loads(status.stdout)["processes"]
    assert {p["role"] for p in processes} == {"store", "memory", "router", "experts", "attention", "gateway"}
    assert len({p["pid"] for p in processes}) == len(processes) == 7
    assert {p["health"] for p in processes} == {"serving"}
    assert all(os.readlink(f"/proc/{p['pid']}/exe") for p in processes)
    run = house.data / "run.json"
    assert run.stat().st_mode & 0o777 == 0o600
    assert house.end(signal.SIGINT) == Exit.OK
    assert not run.exists()
    assert not any(Path(needle).exists() for needle in house.needles - {str(house.data)})


def test_a_second_up_says_where_the_first_one_serves(serve: Callable[..., Any], katsura: Katsura) -> None:
    house = serve(topology="Unified").up()
    second = katsura("up", "--port", "0")
    assert second.returncode == Exit.ALREADY_RUNNING
    assert house.url in second.stderr
    port = house.url.rpartition(":")[2]
    other = katsura("up", "--port", port, data=house.data.parent / "other")
    assert other.returncode == Exit.PORT_TAKEN
    assert f"port {port}" in other.stderr
    doctor = katsura("doctor")
    assert doctor.returncode == Exit.OK, doctor.stdout
    assert "engine-0" in doctor.stdout


def test_a_chat_forks_revises_and_is_drawn(serve: Callable[..., Any], katsura: Katsura) -> None:
    serve(topology="Unified").up()
    chat = katsura(
        "chat", "trip", stdin="one\ntwo\n/fork 2\nthree\n/revise 2 try again\nfour\n/tree\n/nonsense\n/quit\n"
    )
    assert chat.returncode == Exit.OK, chat.stderr
    assert re.search(r"\[trip main #0\]", chat.stdout)
    assert "not understood: /nonsense" in chat.stdout
    assert "go on later with: katsura chat trip" in chat.stdout
    shown = json.loads(katsura("tree", "show", "trip", "--json").stdout)
    assert [b["state"] for b in shown["branches"]] == ["active", "abandoned", "active"]
    steps = {n["content"] for n in shown["nodes"] if n["type"] == "step" and n["role"] == "user"}
    assert steps == {"one", "two", "three", "four"}
    drawn = katsura("tree", "show", "trip")
    assert "left behind" in drawn.stdout
    assert "hint from" in drawn.stdout
    forked = katsura("tree", "fork", "trip", "1", "--branch", "again", "--json")
    assert json.loads(forked.stdout) == {"branch": "again", "head": 1}
    revised = katsura("tree", "revise", "trip", "2", "too long", "--json")
    assert json.loads(revised.stdout)["head"] == 2
    assert "trip" in katsura("tree", "list").stdout
    assert katsura("tree", "fork", "trip", "999").returncode == Exit.FAILED
    unknown = katsura("tree", "show", "nothing")
    assert "there is no session 'nothing'; `katsura tree list`" in " ".join(unknown.stderr.split())


def test_keys_speak_for_tenants_that_do_not_see_each_other(serve: Callable[..., Any], katsura: Katsura) -> None:
    house = serve(topology="Unified").up()
    made = [json.loads(katsura("key", "create", "--tenant", t, "--json").stdout) for t in ("acme", "zeta")]
    mine, other = ({"authorization": f"Bearer {key['key']}"} for key in made)
    assert httpx.post(f"{house.url}/v1/sessions", json={"id": "plan"}, headers=mine).status_code == 201
    assert httpx.get(f"{house.url}/v1/sessions/plan", headers=mine).status_code == 200
    strange = httpx.get(f"{house.url}/v1/sessions/plan", headers=other)
    unknown = httpx.get(f"{house.url}/v1/sessions/plan", headers=mine | {"x-session": ""}).status_code
    assert (strange.status_code, unknown) == (404, 200)
    assert katsura("key", "revoke", made[0]["id"]).returncode == Exit.OK
    listed = json.loads(katsura("key", "list", "--json").stdout)
    assert [(key["tenant"], bool(key["revoked"])) for key in listed] == [("acme", True), ("zeta", False)]
    assert made[0]["key"] not in json.dumps(listed)


def test_the_model_is_continued_after_everything_was_ended_and_started_again(
    serve: Callable[..., Any], katsura: Katsura
) -> None:
    house = serve(topology="Unified").up()
    katsura("chat", "trip", stdin="one\n")
    before = json.loads(katsura("tree", "show", "trip", "--json").stdout)
    assert house.end(signal.SIGTERM) == Exit.OK
    serve(topology="Unified").up()
    assert json.loads(katsura("tree", "show", "trip", "--json").stdout) == before
    again = katsura("chat", "trip", stdin="two\n")
    assert "[trip main #2]" in again.stdout
