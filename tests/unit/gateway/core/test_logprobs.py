from __future__ import annotations

from katsura.gateway.core.choice import Drawn
from katsura.gateway.core.logprobs import LOGPROB_MIN, entries

BYTES = {1: b"hi", 2: b"\xff"}


def test_an_entry_has_text_bytes_and_alternatives() -> None:
    (entry,) = entries([Drawn(1, -0.25, ((1, -0.25), (2, float("-inf"))))], BYTES.__getitem__)
    assert entry == {
        "token": "hi",
        "logprob": -0.25,
        "bytes": [104, 105],
        "top_logprobs": [
            {"token": "hi", "logprob": -0.25, "bytes": [104, 105]},
            {"token": "\ufffd", "logprob": LOGPROB_MIN, "bytes": [255]},
        ],
    }
