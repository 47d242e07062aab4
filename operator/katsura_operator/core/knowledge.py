"""Which coefficients plans use, and how the status of an AcceleratorProfile keeps those that were measured here.

    image < status of the profile, where it was `measured` < file of `katsura calibrate`, unless the status is younger

So what was measured outlives the file that brought it. A device that no profile speaks of lives in the file alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from katsura.domain.errors import InvalidArgumentError
from katsura.manifests.rules import camel
from katsura.placement import catalogue
from katsura.placement.calibration import Calibration, built_in, coefficients_as_json, coefficients_from_json
from katsura.placement.cost import Coefficients, ErrorClass
from katsura_operator.core.objects import PROFILE, Object, name_of
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Snapshot

_APART = {"error_class": "errorClass", "rows": "rows", "date": "date", "quantile_90": "error90"}
"""What status says beside the coefficients, in words for people."""


def device_of(profile: Object) -> str:
    """The device that a profile speaks of, as the planner spells it."""
    return catalogue.built_in().spelled(str(profile["spec"].get("device") or name_of(profile)))


def known(seen: Snapshot, settings: Settings) -> Calibration:
    """Coefficients that plans use; equal knowledge gives equal text, wherever it came from.

    Raises:
        InvalidArgumentError: the file is not what `katsura calibrate` writes.
    """
    profiles = seen.of(PROFILE)
    spelled = {name.lower(): name for name in map(device_of, profiles)}
    found: dict[str, Coefficients] = {}
    for profile in profiles:
        kept = of_status(profile)
        if kept is not None and kept.error_class is ErrorClass.MEASURED:
            _take(found, device_of(profile), kept)
    for name, told in settings.measured().items():
        _take(found, spelled.get(name.lower(), catalogue.built_in().spelled(name)), told)
    return built_in().merged(dict(sorted(found.items())))


def _take(found: dict[str, Coefficients], name: str, told: Coefficients) -> None:
    if name not in found or told.date >= found[name].date:
        found[name] = told


def as_status(coefficients: Coefficients) -> dict[str, Any]:
    """`status.calibration` of a profile."""
    said = coefficients_as_json(coefficients)
    parts = {camel(key): value for key, value in said.items() if key not in _APART}
    return {**{name: said[key] for key, name in _APART.items()}, "coefficients": parts}


def of_status(profile: Object) -> Coefficients | None:
    """The inverse of `as_status`; None where the status has no coefficients that can be read."""
    said: Mapping[str, Any] = (profile.get("status") or {}).get("calibration") or {}
    parts = said.get("coefficients") or {}
    keys = (*_APART, *coefficients_as_json(Coefficients()))
    plain = {key: said.get(_APART[key]) if key in _APART else parts.get(camel(key)) for key in keys}
    try:
        return coefficients_from_json(plain) if parts else None
    except InvalidArgumentError:  # of another version, or by another hand
        return None
