"""What `katsura status` prints."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from katsura.cli.data import DataFolder, ProcessRecord, RunRecord
from katsura.cli.exit import Exit
from katsura.cli.health import Health
from katsura.cli.status import as_dict, status

RECORD = RunRecord(
    pid=7,
    started=1,
    url="http://127.0.0.1:1",
    version="0.1.0",
    run_dir="/nowhere",
    store_url="unix:///s",
    hints_url="unix:///s",
    durability="relaxed",
    token="s3cret",
    processes=(
        ProcessRecord("store", "store", None, "unix:/none", "backoff", 3, last_end="ended by SIGKILL"),
        ProcessRecord("memory-0", "memory", 2**22 + 1, "unix:/none", "ready", 0),
    ),
)


def test_json_lists_role_pid_address_and_health_and_no_secret() -> None:
    said = as_dict(RECORD, [Health("serving", "", 1.0), Health("unreachable", "gone")])
    assert said["healthy"] is False
    assert "s3cret" not in json.dumps(said)
    processes = said["processes"]
    assert isinstance(processes, list)
    assert {"name", "role", "pid", "address", "state", "health", "restarts"} <= processes[0].keys()


def test_processes_that_do_not_answer_make_the_status_unhealthy(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.create()
    folder.write_run(RECORD)
    out = io.StringIO()
    with folder.owned():
        assert status(tmp_path, True, Console(file=out)) is Exit.UNHEALTHY
    first, second = json.loads(out.getvalue())["processes"]
    assert first["why"] == "no process: ended by SIGKILL"
    assert second["health"] == "unreachable"
