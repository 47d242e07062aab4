from __future__ import annotations

import re

from katsura.manifests.conditions import MEANING, ConditionType, EventReason, Why


def test_every_reason_has_a_meaning_and_is_one_word() -> None:
    assert set(MEANING) == set(Why)
    for word in (*Why, *ConditionType, *EventReason):
        assert re.fullmatch(r"[A-Z][A-Za-z]{2,62}", word.value)
