from __future__ import annotations

from katsura.gateway.core.sse import DONE, KEEPALIVE, event


def test_an_event_is_one_line_of_json() -> None:
    assert event({"a": "x\ny", "b": "é"}) == 'data: {"a":"x\\ny","b":"é"}\n\n'.encode()


def test_a_typed_event_names_its_type_first() -> None:
    assert event({}, "response.created") == b"event: response.created\ndata: {}\n\n"


def test_the_end_and_the_comment_are_as_clients_expect() -> None:
    assert DONE == b"data: [DONE]\n\n"
    assert KEEPALIVE.startswith(b":")
    assert KEEPALIVE.endswith(b"\n\n")
