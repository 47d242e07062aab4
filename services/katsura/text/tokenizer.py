"""The tokenizer of a model folder: `tokenizer.json` and what its neighbours say about special tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.decoders import ByteLevel

from katsura.domain.errors import DataLossError, NotFoundError, Reason

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


class Tokenizer:
    """Text to ids and back.

    Text that spells a special token *is* that token, as in every engine of this kind: the rendered template relies
    on it. Immutable once made, and safe to share between threads.

    Attributes:
        special_tokens: `bos_token` and the like, as the chat template sees them.
        special_ids: ids of control tokens, which `decode` leaves out.
        eos_ids: tokens that end an answer.
        vocab_size: one more than the largest id.
        boundaries: special tokens beside which text can be cut so that the ids of the parts are those of the whole.
        is_byte_level: tokens are runs of bytes, so that text is the concatenation of their bytes.
    """

    def __init__(
        self, definition: bytes, special_tokens: Mapping[str, str] | None = None, eos_ids: Sequence[int] = ()
    ) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(definition.decode("utf-8"))
        except Exception as error:  # the library raises nothing narrower
            raise DataLossError(f"tokenizer.json is not a tokenizer: {error}") from error
        self.special_tokens = dict(special_tokens or {})
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        known_eos = self._tokenizer.token_to_id(self.special_tokens.get("eos_token", ""))
        self.eos_ids = tuple(eos_ids) if eos_ids else () if known_eos is None else (known_eos,)
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        self.is_byte_level = isinstance(self._tokenizer.decoder, ByteLevel)
        # A token that takes part of its surroundings with it, or needs a word's edge, is no place to cut.
        plain = {t.content for t in added.values() if not (t.lstrip or t.rstrip or t.single_word or t.normalized)}
        self.boundaries = tuple(sorted(plain - _ambiguous({t.content for t in added.values()})))

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read the tokenizer of a model folder.

        Raises:
            NotFoundError: it has no tokenizer.json.
            DataLossError: a file of it is malformed.
        """
        try:
            definition = (folder / "tokenizer.json").read_bytes()
        except FileNotFoundError:
            raise NotFoundError(
                f"{folder} has no tokenizer.json; a model that serves text needs one", reason=Reason.WEIGHTS_UNAVAILABLE
            ) from None
        settings = read_json(folder / "tokenizer_config.json")
        named = {name: _content(settings[name]) for name in _SPECIAL_NAMES if settings.get(name)}
        eos = read_json(folder / "generation_config.json").get("eos_token_id")
        eos = read_json(folder / "config.json").get("eos_token_id") if eos is None else eos
        return cls(definition, named, eos if isinstance(eos, list) else [] if eos is None else [eos])

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of `text`; begin-of-text and the like only where asked for (a rendered template has its own)."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`; what is not UTF-8 becomes U+FFFD, ids without a token (padding rows of lm_head) nothing."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def id_of(self, token: str) -> int | None:
        """Id of the token spelt `token`, where there is one."""
        index = self._tokenizer.token_to_id(token)
        return None if index is None else int(index)

    def token_bytes(self, index: int) -> bytes:
        """What one token stands for: its bytes (byte-level tokenizers), else its text in UTF-8."""
        token = self._tokenizer.id_to_token(index)
        if token is None:
            return b""
        if not self.is_byte_level:
            return self._tokenizer.decode([index], skip_special_tokens=False).encode()
        try:
            return bytes(_BYTE_OF[char] for char in token)
        except KeyError:
            return token.encode()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file.

    Raises:
        DataLossError: it is not a JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataLossError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataLossError(f"{path} is not a JSON object")
    return value


def _content(token: object) -> str:
    """Special tokens are written as text or as `{"content": text}`."""
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _ambiguous(tokens: set[str]) -> set[str]:
    """Those of `tokens` that another one could swallow or begin before: part of it, or beginning as one ends."""
    parts = {t[i:j] for t in tokens for i in range(len(t)) for j in range(i + 1, len(t) + 1) if j - i < len(t)}
    ends = {t[i:] for t in tokens for i in range(1, len(t))}
    return {t for t in tokens if t in parts or any(t[:n] in ends for n in range(1, len(t) + 1))}


def _byte_table() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


_BYTE_OF = _byte_table()
