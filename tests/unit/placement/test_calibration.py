from __future__ import annotations

import json

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.placement import catalogue
from katsura.placement.calibration import built_in, coefficients_as_json, read_devices
from katsura.placement.cost import ErrorClass


def test_a_measured_device_takes_the_place_of_its_kind() -> None:
    h100 = catalogue.built_in().named("H100")
    gpu = built_in().of(h100)
    text = json.dumps({"devices": {"H100": {**coefficients_as_json(gpu), "weights": 9.0, "error_class": "measured"}}})
    mine = built_in().merged(read_devices(text))
    assert mine.of(h100).weights == 9.0
    assert mine.of(h100).error_class is ErrorClass.MEASURED
    l4 = catalogue.built_in().named("L4")
    assert mine.of(l4) == built_in().of(l4)


def test_priors_are_marked_as_such() -> None:
    assert built_in().of(catalogue.built_in().named("cpu")).error_class is ErrorClass.PRIOR


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"devices": []}', '{"devices": {"x": {}}}', '{"devices": {"x": 1}}'])
def test_a_file_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="katsura calibrate"):
        read_devices(text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": -1.0}, r"devices\.H100: calibration: weights: expected a number, 0 or more"),
        ({"weights": float("nan")}, "weights: expected a number"),
        ({"quantile_90": 0.5}, "quantile_90: expected a number"),
        ({"error_class": "sure"}, "'sure' is not a valid ErrorClass"),
    ],
)
def test_coefficients_that_cannot_be_are_refused_by_name(changes: dict[str, object], said: str) -> None:
    known = coefficients_as_json(built_in().of(catalogue.built_in().named("H100")))
    with pytest.raises(InvalidArgumentError, match=said):
        read_devices(json.dumps({"devices": {"H100": {**known, **changes}}}))
