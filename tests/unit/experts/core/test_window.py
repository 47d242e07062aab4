"""The order of a window is exact: who is served first, together, later, or not at all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from katsura.domain.cost import FrameCost
from katsura.experts.core.window import Waiting, Window, arrange

FREE = FrameCost(0.0, 0.0)


def test_deeper_layers_go_first_and_the_urgent_before_the_patient() -> None:
    frames = [Waiting(0, 2, 9.0, 1, 1), Waiting(1, 5, 9.0, 1, 1), Waiting(2, 2, 3.0, 1, 1)]
    assert arrange(frames, 1.0, FREE, fuse=False).batches == ((1,), (2,), (0,))


def test_frames_of_one_layer_are_computed_together_where_that_changes_no_bit() -> None:
    frames = [Waiting(0, 2, 9.0, 1, 1), Waiting(1, 5, 9.0, 1, 1), Waiting(2, 2, 3.0, 1, 1)]
    assert arrange(frames, 1.0, FREE, fuse=True).batches == ((1,), (2, 0))


def test_a_frame_whose_client_no_longer_waits_is_not_computed() -> None:
    frames = [Waiting(0, 1, 1.0, 1, 1), Waiting(1, 1, 2.0, 1, 1)]
    assert arrange(frames, 1.0, FREE, fuse=False) == Window(((1,),), expired=(0,))


def test_a_frame_that_would_be_done_too_late_is_given_back_for_another_copy() -> None:
    frames = [Waiting(0, 1, 9.0, 2, 0), Waiting(1, 2, 9.0, 2, 0), Waiting(2, 0, 2.5, 1, 0)]
    assert arrange(frames, 0.0, FrameCost(1.0, 0.0), fuse=False) == Window(((1,), (0,)), overloaded=(2,))


def test_sharing_weight_reads_makes_room_for_the_second_client() -> None:
    frames = [Waiting(0, 1, 3.0, 2, 1), Waiting(1, 1, 3.0, 2, 1)]
    assert arrange(frames, 0.0, FrameCost(1.0, 0.1), fuse=True) == Window(((0, 1),))
    assert arrange(frames, 0.0, FrameCost(1.0, 0.1), fuse=False) == Window(((0,),), overloaded=(1,))


def test_a_lone_frame_is_tried_even_if_it_looks_too_late() -> None:
    assert arrange([Waiting(0, 1, 0.1, 9, 9)], 0.0, FrameCost(1.0, 1.0), fuse=False).batches == ((0,),)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 5), st.integers(1, 4), st.integers(1, 9)), max_size=8),
    st.booleans(),
)
def test_every_frame_has_exactly_one_fate(given_frames: list[tuple[int, float, int, int]], fuse: bool) -> None:
    frames = [Waiting(index, *fields) for index, fields in enumerate(given_frames)]
    window = arrange(frames, 1.0, FrameCost(0.3, 0.05), fuse)
    fates = [index for batch in window.batches for index in batch] + list(window.expired + window.overloaded)
    assert sorted(fates) == list(range(len(frames)))
    assert all(len({frames[i].layer for i in batch}) == 1 for batch in window.batches)
