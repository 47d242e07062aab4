"""What of the wanted is not there yet. Nothing is written that already is as it should be.

An object is current when it carries the digest of what was applied last (so that a field that is not wanted any more is
noticed) and still contains all of it (so that somebody's edit is noticed). What others add is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from katsura_operator.core.objects import APPLIED, Object, annotations_of, digest

_SUFFIXES: Final[Mapping[str, int | Decimal]] = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("0.001"),
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "E": 10**18,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "Pi": 2**50,
    "Ei": 2**60,
}


def stamped(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """`wanted` with the digest of itself in an annotation."""
    metadata = dict(wanted["metadata"])
    annotations = {**metadata.get("annotations", {}), APPLIED: digest(wanted, length=16)}
    return {**wanted, "metadata": {**metadata, "annotations": annotations}}


def is_current(seen: Object | None, wanted: Object) -> bool:
    """Whether `seen` needs no write to be `wanted` (a stamped object)."""
    if seen is None:
        return False
    return annotations_of(seen).get(APPLIED) == annotations_of(wanted)[APPLIED] and contains(seen, wanted)


def contains(seen: Any, wanted: Any) -> bool:
    """Whether every value of `wanted` stands in `seen`; the API server may write quantities in another form."""
    if isinstance(wanted, Mapping):
        return isinstance(seen, Mapping) and all(
            _is_absent(seen.get(key), value) or contains(seen.get(key), value) for key, value in wanted.items()
        )
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        if not isinstance(seen, Sequence) or isinstance(seen, str) or len(seen) != len(wanted):
            return False
        return all(contains(a, b) for a, b in zip(seen, wanted, strict=True))
    return bool(seen == wanted) or _same_quantity(seen, wanted)


def _is_absent(seen: Any, wanted: Any) -> bool:
    """Empty values are not stored."""
    return seen is None and (wanted is None or wanted == "" or wanted == {} or wanted == [])


def _same_quantity(seen: Any, wanted: Any) -> bool:
    a, b = _quantity(seen), _quantity(wanted)
    return a is not None and a == b


def _quantity(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value)
    number = text.rstrip("".join(_SUFFIXES))
    factor = _SUFFIXES.get(text[len(number) :])
    try:
        return None if factor is None else Decimal(number) * factor
    except InvalidOperation:
        return None
