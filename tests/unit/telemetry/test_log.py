import json
import logging
from contextvars import copy_context

import pytest

from katsura.telemetry import log


@pytest.fixture(autouse=True)
def _root_logger_is_put_back() -> object:
    root = logging.getLogger()
    kept = (root.handlers[:], root.level)
    yield
    root.handlers[:], root.level = kept[0], kept[1]


def test_a_json_line_carries_ids_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("memory", log.LogFormat.JSON, "info")
    with log.ids(tenant="ann", request="r1"):
        log.get("x").info("grown", node=7)
    line = json.loads(capsys.readouterr().err)
    assert (line["katsura.tenant"], line["katsura.request"], line["node"], line["message"]) == ("ann", "r1", 7, "grown")
    assert line["process"] == "memory"


def test_ids_end_with_their_block_and_empty_ones_keep_the_outer(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("memory", log.LogFormat.HUMAN, "info")
    with log.ids(tenant="ann"):
        with log.ids(session="s1"):
            log.get("x").info("inner")
        log.get("x").info("outer")
    inner, outer = capsys.readouterr().err.splitlines()
    assert "tenant=ann" in inner
    assert "session=s1" in inner
    assert "session" not in outer


def test_ids_that_become_known_later_end_with_the_block_around_them(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("gateway", log.LogFormat.HUMAN, "info")
    with log.ids(request="r1"):
        log.bind(tenant="ann")
        log.bind(session="s1")
        log.get("x").info("inner")
    log.get("x").info("outer")
    inner, outer = capsys.readouterr().err.splitlines()
    assert all(part in inner for part in ("request=r1", "tenant=ann", "session=s1"))
    assert "=" not in outer


def test_what_others_wrote_cannot_make_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("gateway", log.LogFormat.HUMAN, "info")
    log.get("x").info("GET /a\n2026 forged", error="b\x00\nc é")
    (line,) = capsys.readouterr().err.splitlines()
    assert "GET /a\\n2026 forged error=b\\x00\\nc" in line


def test_ids_may_end_in_another_context_than_they_began_in() -> None:
    ids = log.ids(tenant="ann")
    copy_context().run(ids.__enter__)
    assert not ids.__exit__(None, None, None)


def test_an_exception_is_logged_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("memory", log.LogFormat.JSON, "info")
    try:
        raise ValueError("broken")
    except ValueError as error:
        log.get("x").error("failed", exc=error)
    assert "ValueError: broken" in json.loads(capsys.readouterr().err)["exception"]
