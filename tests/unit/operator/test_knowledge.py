"""What was measured outlives the file that brought it, in the words of a status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from katsura.placement.calibration import built_in, coefficients_as_json
from katsura.placement.cost import Coefficients, ErrorClass
from katsura_operator.core.knowledge import as_status, device_of, known, of_status
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Snapshot

MEASURED = replace(
    built_in().kinds["gpu"], weights=1.234567, error_class=ErrorClass.MEASURED, rows=12, date="2026-11-20"
)


def profile(name: str, kept: Coefficients | None = None, device: str | None = None) -> dict[str, Any]:
    spec = {} if device is None else {"device": device}
    status = {} if kept is None else {"calibration": json.loads(json.dumps(as_status(kept)))}
    return {"kind": "AcceleratorProfile", "metadata": {"name": name}, "spec": spec, "status": status}


def settings(devices: Mapping[str, Coefficients] | None = None) -> Settings:
    said = {name: coefficients_as_json(c) for name, c in (devices or {}).items()}
    return Settings("n", "s:1", "e:1", calibration=json.dumps({"devices": said}) if said else "")


def believed(devices: Mapping[str, Coefficients] | None, *profiles: dict[str, Any]) -> Mapping[str, Coefficients]:
    return known(Snapshot({"AcceleratorProfile": profiles}, "now"), settings(devices)).devices


def test_what_a_status_keeps_is_what_was_measured() -> None:
    assert of_status(profile("x", MEASURED)) == replace(MEASURED, weights=1.23457), "six digits, as in a file"
    assert of_status(profile("x")) is None


@pytest.mark.parametrize("gone", ["weights", "first", "batchRange"])
def test_a_status_of_another_version_is_no_knowledge(gone: str) -> None:
    old = profile("x", MEASURED)
    del old["status"]["calibration"]["coefficients"][gone]
    assert of_status(old) is None
    assert "x" not in believed(None, old)


def test_the_same_knowledge_is_the_same_text_from_a_file_and_from_a_status() -> None:
    other = replace(MEASURED, kv=2.0)
    told = believed({"b": other, "a": MEASURED}, profile("a"), profile("b"))
    kept = believed(None, profile("a", MEASURED), profile("b", other))
    assert repr(told) == repr(kept), "or the plan would be solved again when the file goes"


@pytest.mark.parametrize(("file", "winner"), [("2026-11-19", "status"), ("2026-11-20", "file"), ("2026-11-21", "file")])
def test_a_file_wins_unless_the_status_is_younger(file: str, winner: str) -> None:
    told = replace(MEASURED, weights=9.0, date=file)
    assert believed({"x": told}, profile("x", MEASURED))["x"].weights == (9.0 if winner == "file" else 1.23457)


def test_what_others_measured_is_of_the_image_and_changes_with_it() -> None:
    shown = replace(built_in().devices["H100"], weights=7.0)
    assert shown.error_class is ErrorClass.CALIBRATED
    assert believed(None, profile("h100", shown))["H100"] == built_in().devices["H100"]
    assert believed(None, profile("h100", MEASURED))["H100"].weights == 1.23457


@pytest.mark.parametrize(
    ("name", "device", "spelled"), [("h100", None, "H100"), ("x1", None, "x1"), ("p", "h100", "H100")]
)
def test_devices_are_spelled_as_the_planner_spells_them(name: str, device: str | None, spelled: str) -> None:
    one = profile(name, device=device)
    assert device_of(one) == spelled
    assert believed({spelled.upper(): MEASURED}, one)[spelled].rows == 12


def test_of_two_profiles_of_a_device_the_younger_measurement_counts() -> None:
    old = replace(MEASURED, weights=5.0, date="2026-11-01")
    for pair in ((old, MEASURED), (MEASURED, old)):
        profiles = (profile(f"p{i}", kept, "L4") for i, kept in enumerate(pair))
        assert believed(None, *profiles)["L4"].date == "2026-11-20"
