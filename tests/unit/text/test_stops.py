from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from katsura.domain.errors import InvalidArgumentError
from katsura.text.stops import StopStrings

AB = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def whole(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The rule, read off character by character."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            stop = max(ended, key=len)
            return text[: end - len(stop)], stop
    return text, None


@settings(deadline=None)
@given(parts=st.lists(AB, max_size=6), stops=STOPS)
def test_the_result_is_that_of_the_whole_text_however_it_is_cut(parts: list[str], stops: list[str]) -> None:
    watch = StopStrings(stops)
    sent = "".join(watch.push(part) for part in parts) + watch.finish()
    assert (sent, watch.matched) == whole("".join(parts), stops)


@settings(deadline=None)
@given(parts=st.lists(AB, max_size=6), stops=STOPS)
def test_nothing_is_held_that_cannot_begin_a_stop_string(parts: list[str], stops: list[str]) -> None:
    watch, sent, seen = StopStrings(stops), "", ""
    for part in parts:
        sent, seen = sent + watch.push(part), seen + part
        held = seen[len(sent) :]
        if watch.matched is None:
            assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_text_after_a_stop_string_is_swallowed() -> None:
    watch = StopStrings(["END"])
    assert watch.push("one EN") == "one "
    assert watch.push("D two") == ""
    assert watch.push("three") == ""
    assert (watch.matched, watch.finish()) == ("END", "")


def test_a_false_start_is_sent_when_it_turns_out_to_be_one() -> None:
    watch = StopStrings(["END"])
    assert [watch.push("EN"), watch.push("EN"), watch.finish()] == ["", "EN", "EN"]


@pytest.mark.parametrize("stops", [[""], ["x"] * 17, ["x" * 1025]])
def test_stop_strings_out_of_bounds_name_their_field(stops: list[str]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        StopStrings(stops)
    assert caught.value.field == "stop"
