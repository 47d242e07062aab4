"""Server-sent events as bytes."""

from __future__ import annotations

import json

DONE = b"data: [DONE]\n\n"
"""The end of a chat completion's stream."""
KEEPALIVE = b": keepalive\n\n"
"""A comment: proxies see life, clients see nothing."""


def event(data: object, name: str = "") -> bytes:
    """One event whose data is JSON on a single line; `name` is its type, where the protocol has types."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()
