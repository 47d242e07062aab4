"""`katsura up` when things go wrong: kills of every process and of the supervisor, a store that is not there."""

from __future__ import annotations

import json
import os
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


def test_kill_9_of_the_supervisor_leaves_nothing_and_loses_nothing(serve: Callable[..., Any], katsura: Katsura) -> None:
    house = serve().up()
    katsura("chat", "trip", stdin="one\n")
    before = json.loads(katsura("tree", "show", "trip", "--json").stdout)
    house.__exit__()  # kill -9, and nothing may stay
    assert katsura("status").returncode == Exit.NOT_RUNNING
    serve().up()
    assert json.loads(katsura("tree", "show", "trip", "--json").stdout) == before


def test_every_process_that_is_killed_comes_back_and_answers_go_on(serve: Callable[..., Any], katsura: Katsura) -> None:
    house = serve().up()
    for name in ("memory-0", "router-0", "experts-0", "attention-0", "gateway", "store"):
        os.kill(house.pid_of(name), signal.SIGKILL)
        house.until(f"{name} ended by SIGKILL; starting it again")
        house.until(f"{name} is back")
        chat = katsura("chat", f"after-{name}", stdin="still there?\n")
        assert chat.returncode == Exit.OK, chat.stderr
        shown = json.loads(katsura("tree", "show", f"after-{name}", "--json").stdout)
        assert [n["role"] for n in shown["nodes"]] == ["user", "assistant"], (
            f"after {name}: {chat.stdout}\n{house.logs()}"
        )
    restarts = {p["name"]: p["restarts"] for p in house.run["processes"]}
    assert restarts["experts-1"] == 0
    assert all(restarts[name] >= 1 for name in restarts if name != "experts-1")


def test_a_store_that_is_not_there_is_waited_for_and_said(serve: Callable[..., Any], tmp_path: Path) -> None:
    house = serve("--redis", f"unix://{tmp_path}/none.sock", topology="Unified")
    assert "does not answer" in house.until("waiting for the store")
    assert house.end(signal.SIGINT) == Exit.INTERRUPTED


def test_ctrl_c_while_starting_leaves_nothing(serve: Callable[..., Any]) -> None:
    house = serve()
    house.until("store is ready")
    house.needles.add(str(house.run["run_dir"]))
    assert house.end(signal.SIGINT) == Exit.OK


def test_a_full_disk_is_told_and_ends_nothing(serve: Callable[..., Any]) -> None:
    house = serve(topology="Unified").up()
    (house.data / "run.partial").symlink_to("/dev/full")  # from here on the record cannot be written
    os.kill(house.pid_of("memory-0"), signal.SIGKILL)
    assert "No space left on device" in house.until("cannot write to the data folder")
    house.until("memory-0 is back")
    (house.data / "run.partial").unlink()
    os.kill(house.pid_of("router-0"), signal.SIGKILL)
    house.until("router-0 is back")
    assert httpx.get(f"{house.url}/v1/models", timeout=60).status_code == 200


def test_a_broken_model_folder_is_said_plainly(katsura: Katsura, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    manifest = tmp_path / "m.yaml"
    manifest.write_text(
        "apiVersion: katsura.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {name: m}\n"
        f"spec: {{model: {{source: 'file://{tmp_path}/empty'}}}}\n"
    )
    ended = katsura("up", "-f", str(manifest), "--port", "0")
    assert ended.returncode == Exit.FAILED
    assert "holds no model" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_requests_are_refused_cleanly_while_the_store_is_gone(serve: Callable[..., Any]) -> None:
    house = serve(topology="Unified").up()
    os.kill(house.pid_of("store"), signal.SIGSTOP)
    try:
        answer = httpx.get(f"{house.url}/v1/sessions", timeout=120)
        assert answer.status_code in (503, 504)
        assert answer.json()["error"]["message"]
    finally:
        os.kill(house.pid_of("store"), signal.SIGCONT)
    assert httpx.get(f"{house.url}/v1/sessions", timeout=120).status_code == 200
