from __future__ import annotations

from katsura.model.batch import SequenceStep, StepBatch

BATCH = StepBatch([SequenceStep(5, 3, [0], [2]), SequenceStep(9, 1, [1], []), SequenceStep(0, 2, [2], [0, 1])])


def test_rows_follow_the_sequences():
    assert BATCH.token_count == 6
    assert BATCH.positions() == [5, 6, 7, 9, 0, 1]


def test_wanted_rows_are_counted_over_the_batch():
    assert BATCH.logit_rows() == [2, 4, 5]
