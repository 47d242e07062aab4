"""One line that says what a checkpoint changed: what a person sees of it in `katsura tree`, and what search finds.

Pure, and never the truth: values are read back from their bytes only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

CAPTION_CHARS_MAX: Final = 240
_VALUE_CHARS_MAX: Final = 100
_OURS_TO_HIDE: Final = ("__", "branch:")
"""Channels that LangGraph drives itself with."""


def caption(metadata: Mapping[str, Any], values: Mapping[str, Any], changed: Iterable[str]) -> str:
    """For example `step 2: log … H-7 for 900 USD: too dear, plan []`.

    Args:
        metadata: LangGraph's: `source` (input, loop, update, fork) and `step`.
        values: the channels' values; of a list the last item is shown.
        changed: names of the channels with a new version.
    """
    source = str(metadata.get("source") or "checkpoint")
    title = f"step {metadata.get('step')}" if source == "loop" else source
    names = sorted(name for name in set(changed) if name in values and not name.startswith(_OURS_TO_HIDE))
    parts = [_cut(f"{name} {_shown(values[name])}", _VALUE_CHARS_MAX) for name in names]
    return _cut(f"{title}: {', '.join(parts)}" if parts else title, CAPTION_CHARS_MAX)


def _shown(value: object) -> str:
    match value:
        case str():
            return " ".join(value[: 2 * _VALUE_CHARS_MAX].split())
        case None | bool() | int() | float():
            return str(value)
        case list() | tuple():
            return f"{'… ' if len(value) > 1 else ''}{_shown(value[-1])}" if value else "[]"
        case dict():
            return "{" + ", ".join(str(key) for key in list(value)[:8]) + "}"
    speaker, content = getattr(value, "type", None), getattr(value, "content", None)
    if isinstance(speaker, str) and isinstance(content, str):  # a message
        calls = getattr(value, "tool_calls", None) or ()
        said = content or ", ".join(f"{call.get('name')}()" for call in calls if isinstance(call, dict))
        return f"{speaker}: {_shown(said)}"
    return type(value).__name__


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
