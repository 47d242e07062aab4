"""Which events ask for a pass, and what people hear of kopf."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest

from katsura_operator.watch import Quiet, Watch, quieten


def pod(ready: bool, uid: str = "u", **status: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": str(ready), "lastProbeTime": status.pop("probed", None)}]
    return {"kind": "Pod", "metadata": {"uid": uid}, "status": {"conditions": conditions, **status}}


class Count:
    """How often a pass was asked for."""

    def __init__(self) -> None:
        self.asked = 0
        self.watch = Watch((), self.ask, "me", nodes=True)

    def ask(self) -> None:
        self.asked += 1

    def note(self, kind: str, obj: Mapping[str, Any]) -> int:
        """Passes that this event asked for."""
        before = self.asked
        self.watch.note(kind, obj)
        return self.asked - before


def test_what_reads_as_it_did_asks_for_nothing() -> None:
    seen = Count()
    assert seen.note("ADDED", pod(False)) == 1
    assert seen.note("ADDED", pod(False)) == 0, "a duplicate"
    assert seen.note("MODIFIED", pod(False, probed="12:00")) == 0, "a heartbeat"
    assert seen.note("MODIFIED", pod(True)) == 1


def test_an_end_asks_for_a_pass_every_time_and_is_forgotten() -> None:
    seen = Count()
    seen.note("ADDED", pod(True))
    assert seen.note("DELETED", pod(True)) == 1
    assert seen.note("ADDED", pod(True)) == 1, "made anew"
    assert seen.watch._seen.keys() == {("Pod", "u")}


def test_objects_of_one_uid_and_another_kind_are_not_mixed_up() -> None:
    seen = Count()
    seen.note("ADDED", pod(True))
    assert seen.note("ADDED", {**pod(True), "kind": "Node"}) == 1


async def test_a_handler_of_kopf_ends_in_a_note() -> None:
    seen = Count()
    await seen.watch._handle(event={"type": None, "object": pod(True)}, logger=None)
    assert seen.asked == 1


@pytest.mark.parametrize(
    ("nodes", "profiles", "watched"),
    [
        (True, True, {"Node", "ResourceSlice", "AcceleratorProfile"}),
        (False, True, {"AcceleratorProfile"}),
        (False, False, set()),
    ],
)
def test_of_the_whole_cluster_is_watched_what_is_read(nodes: bool, profiles: bool, watched: set[str]) -> None:
    kinds = {k.name for k in Watch((), lambda: None, "me", nodes=nodes, profiles=profiles)._kinds}
    assert kinds & {"Node", "ResourceSlice", "AcceleratorProfile"} == watched


def test_a_changed_profile_asks_for_a_pass_and_what_we_say_of_it_does_not() -> None:
    seen = Count()
    profile = {"kind": "AcceleratorProfile", "metadata": {"uid": "u"}, "spec": {"cost": {"perHour": 1.0}}}
    assert seen.note("ADDED", profile) == 1
    assert seen.note("MODIFIED", {**profile, "status": {"nodes": 3, "calibration": {"rows": 12}}}) == 0
    assert seen.note("MODIFIED", {**profile, "spec": {"cost": {"perHour": 2.0}}}) == 1


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("kopf.x", logging.ERROR, "", 0, text, None, None)


def test_a_lost_api_server_is_one_line_in_half_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    handler = Quiet(lambda: now[0])
    for attempt in range(80):
        handler.emit(record(f"attempt {attempt}\nand a long traceback"))
    assert [r.getMessage() for r in caplog.records] == ["watches are interrupted; passes go on by time"]
    assert caplog.records[0].katsura_fields == {"why": "attempt 0", "more": 0}  # type: ignore[attr-defined]
    now[0] += 30.0
    handler.emit(record("attempt 80"))
    assert caplog.records[1].katsura_fields == {"why": "attempt 80", "more": 79}  # type: ignore[attr-defined]


def test_the_routine_of_kopf_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("kopf")
    before = logger.handlers[:], logger.propagate
    try:
        quieten()
        logging.getLogger("kopf.activities.authentication").info("Initial authentication has been initiated.")
        logging.getLogger("kopf.objects").error("trouble")
    finally:
        logger.handlers[:], logger.propagate = before
    assert [r.name for r in caplog.records] == ["katsura_operator.watch"]
