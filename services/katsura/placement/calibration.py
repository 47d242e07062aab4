"""Which coefficients hold for which device, and what helpers cost: measured where somebody measured, priors elsewhere.

`coefficients.json` ships fits and priors with their dates; `katsura calibrate` writes more of the same form.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.catalogue import Device
from katsura.placement.cost import TERMS, Coefficients, ErrorClass


@dataclass(frozen=True, slots=True)
class Calibration:
    """Coefficients by device name and, where there are none, by kind (`gpu`, `cpu`); one-way link latencies by kind.

    `helpers` holds CPU seconds and bytes of the services that are no model (names as in `coefficients.json`).
    """

    devices: Mapping[str, Coefficients]
    kinds: Mapping[str, Coefficients]
    hop_s: Mapping[str, float]
    helpers: Mapping[str, float]

    def of(self, device: Device) -> Coefficients:
        """The best coefficients known for `device`."""
        return self.devices.get(device.name) or self.kinds[device.kind]

    def merged(self, other: Mapping[str, Coefficients]) -> Calibration:
        """This calibration with the devices of `other` in place of its own."""
        return Calibration(MappingProxyType({**self.devices, **other}), self.kinds, self.hop_s, self.helpers)

    def extrapolating(self) -> Calibration:
        """This calibration, answering beyond what was seen; such estimates are marked."""

        def daring(known: Mapping[str, Coefficients]) -> Mapping[str, Coefficients]:
            return MappingProxyType({name: replace(c, extrapolate=True) for name, c in known.items()})

        return replace(self, devices=daring(self.devices), kinds=daring(self.kinds))


def coefficients_as_json(coefficients: Coefficients) -> dict[str, Any]:
    """The form in which coefficients are stored."""
    return {
        **{name: float(f"{getattr(coefficients, name):.6g}") for name in TERMS},
        "first": [float(f"{v:.6g}") for v in coefficients.first],
        "first_collective": [float(f"{v:.6g}") for v in coefficients.first_collective],
        "quantile_90": round(coefficients.quantile_90, 4),
        "error_class": coefficients.error_class.value,
        "rows": coefficients.rows,
        "date": coefficients.date,
        "batch_range": list(coefficients.batch_range),
        "context_range": list(coefficients.context_range),
    }


def coefficients_from_json(entry: Mapping[str, Any]) -> Coefficients:
    """The inverse of `coefficients_as_json`.

    Raises:
        InvalidArgumentError: a field is missing or of the wrong kind.
    """
    try:
        first = entry["first"]
        terms: dict[str, Any] = {name: float(entry[name]) for name in TERMS}
        told = Coefficients(
            **terms,
            first=(float(first[0]), float(first[1]), float(first[2]), float(first[3])),
            first_collective=(float(entry["first_collective"][0]), float(entry["first_collective"][1])),
            quantile_90=float(entry["quantile_90"]),
            error_class=ErrorClass(entry["error_class"]),
            rows=int(entry["rows"]),
            date=str(entry["date"]),
            batch_range=(float(entry["batch_range"][0]), float(entry["batch_range"][1])),
            context_range=(float(entry["context_range"][0]), float(entry["context_range"][1])),
        )
    except KeyError as error:
        raise _not_ours(f"lacks {error}") from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise _not_ours(str(error)) from error
    wrong = [name for name, value in terms.items() if not 0 <= value < math.inf]
    if wrong or not 1 <= told.quantile_90 < math.inf or not any(terms.values()):
        raise _not_ours(f"{', '.join(wrong) or 'quantile_90'}: expected a number, 0 or more (quantile_90: 1 or more)")
    return told


def read_devices(text: str) -> dict[str, Coefficients]:
    """Coefficients by device name from a file that `katsura calibrate` wrote.

    Raises:
        InvalidArgumentError: it did not, naming the device and what is wrong of it.
    """
    try:
        devices = json.loads(text)["devices"]
    except ValueError as error:
        raise _not_ours(f"no JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise _not_ours("it has no devices") from error
    if not isinstance(devices, Mapping):
        raise _not_ours("its devices are no fields")
    found = {}
    for name, entry in devices.items():
        try:
            found[name] = coefficients_from_json(entry)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"devices.{name}: {error}", field="calibration") from error
    return found


def _not_ours(why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"calibration: {why}; make the file with `katsura calibrate`", field="calibration")


@cache
def built_in() -> Calibration:
    """What ships with the package."""
    data = json.loads(resources.files(__package__).joinpath("coefficients.json").read_text())
    return Calibration(
        MappingProxyType({k: coefficients_from_json(v) for k, v in data["devices"].items()}),
        MappingProxyType({k: coefficients_from_json(v) for k, v in data["kinds"].items()}),
        MappingProxyType(data["hop_s"]),
        MappingProxyType(data["helpers"]),
    )
