"""The name under which rendered token ids are kept: of the tokenizer and of the chat template together."""

from __future__ import annotations

import hashlib
from pathlib import Path

_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def tokenizer_digest(folder: Path) -> str:
    """SHA-256, in hexadecimal, over the files that decide which ids a message becomes; empty without a tokenizer."""
    digest = hashlib.sha256()
    if not (folder / _FILES[0]).is_file():
        return ""
    for name in _FILES:
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
