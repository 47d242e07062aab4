from __future__ import annotations

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.problem import ModelService, Problem
from katsura.placement.whatif import changed


def test_each_form_changes_one_thing(small: Problem) -> None:
    assert sum(len(c.nodes) for c in changed(small, "nodes:L4=+2").classes) == 14
    assert sum(len(c.nodes) for c in changed(small, "nodes:L4=-5").classes) == 7
    assert [len(c.nodes) for c in changed(small, "nodes:A100-80=-4").classes] == [2, 0, 6]  # of both zones together
    assert [len(c.nodes) for c in changed(small, "nodes:A100-80=x2").classes] == [9, 3, 6]
    assert {c.hourly_usd for c in changed(small, "price:A100-80=1").classes} == {8.0, 3.0}
    chat = changed(changed(small, "demand:chat=x2"), "itl:chat=80").services[0]
    assert isinstance(chat, ModelService)
    assert (chat.requests_s, chat.slo.itl_s) == (40.0, 0.08)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("more gpus", "write nodes:DEVICE"),
        ("nodes:H900=+1", "no device 'H900'"),
        ("demand:chatt=2", "no deployment 'chatt'"),
        ("nodes:l44=+1", "did you mean L4"),
        ("nodes:L4=-9", "there are 6 nodes"),
        ("nodes:L4=+1.5", "7.5 nodes; name a whole number"),
        ("price:L4=-99", "dollars per hour"),
        ("itl:chat=0", "more than 0 ms"),
        ("ttft:chat=x2", "no such limit"),
    ],
)
def test_what_is_not_understood_says_what_would_be(small: Problem, text: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        changed(small, text)
