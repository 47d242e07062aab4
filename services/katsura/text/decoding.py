"""Token ids to text as they come, so that what was sent never has to be taken back."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from katsura.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_PATIENCE = 16


class IncrementalDecoder:
    """Decodes one sequence. `push(a) + push(b) + ... + finish()` is `tokenizer.decode([a, b, ...])`.

    A character whose bytes are spread over tokens is held until it is whole. (SentencePiece's byte fallback is not
    stable under appending where bytes are no UTF-8 at all; only there the two may show U+FFFD differently.)
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decode = _ByteLevel(tokenizer) if tokenizer.is_byte_level else _Window(tokenizer)

    def push(self, ids: Iterable[int]) -> str:
        """Text that became certain by `ids`, which may be empty."""
        return "".join(self._decode.push(index) for index in ids if index not in self._skipped)

    def finish(self) -> str:
        """What is held still, at the end of the sequence: an unfinished character becomes U+FFFD."""
        return self._decode.finish()


class _ByteLevel:
    """Tokens are bytes: an incremental UTF-8 decoder is all it takes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        return self._utf8.decode(self._tokenizer.token_bytes(index))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _Window:
    """Other tokenizers (SentencePiece) treat a token by its neighbours: decode a window and send what it adds.

    The window begins with the tokens sent last, so that the space which a first token loses is lost once. Bytes that
    never become a character are let go after `_PATIENCE` tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._sent: list[int] = []
        self._fresh: list[int] = []

    def push(self, index: int) -> str:
        self._fresh.append(index)
        new = self._new()
        if not new or (new.endswith(_REPLACEMENT) and len(self._fresh) < _PATIENCE):
            return ""
        self._sent, self._fresh = self._fresh, []
        return new

    def finish(self) -> str:
        new, self._sent, self._fresh = self._new(), [], []
        return new

    def _new(self) -> str:
        before = self._tokenizer.decode(self._sent, skip_special_tokens=False)
        return self._tokenizer.decode(self._sent + self._fresh, skip_special_tokens=False)[len(before) :]
