from __future__ import annotations

import json
from pathlib import Path

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.placement import calibration
from katsura_operator.config import Certificates, OperatorConfig

LEAST = {
    "KATSURA_OPERATOR_NAMESPACE": "k",
    "KATSURA_OPERATOR_SERVICES_IMAGE": "s",
    "KATSURA_OPERATOR_ENGINE_IMAGE": "e",
}


def test_it_serves_its_own_namespace_from_declared_nodes_unless_told_otherwise() -> None:
    made = OperatorConfig.from_env(LEAST)
    assert made.namespaces == ("k",)
    assert not made.settings.nodes_observed


def test_it_makes_certificates_unless_they_are_given() -> None:
    given = OperatorConfig.from_env({**LEAST, "KATSURA_OPERATOR_CERTIFICATES": "given"})
    assert (OperatorConfig.from_env(LEAST).certificates, given.certificates) == (Certificates.OWN, Certificates.GIVEN)


def test_a_star_is_every_namespace() -> None:
    assert OperatorConfig.from_env({**LEAST, "KATSURA_OPERATOR_NAMESPACES": "*"}).namespaces == ()


def test_every_mistake_is_told_at_once() -> None:
    wrong = {"KATSURA_OPERATOR_INVENTORY": "guess", "KATSURA_OPERATOR_NAMESPASES": "a"}
    with pytest.raises(InvalidArgumentError) as caught:
        OperatorConfig.from_env(wrong)
    for word in ("NAMESPACE: required", "SERVICES_IMAGE", "nodes, declared", "did you mean"):
        assert word in caught.value.message


def test_an_address_without_a_port_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="host:port"):
        OperatorConfig.from_env({**LEAST, "KATSURA_OPERATOR_LISTEN": "here"})


def test_volumes_and_dns_are_left_alone_where_nothing_is_said() -> None:
    least = OperatorConfig.from_env(LEAST).settings
    assert (least.fs_group, least.dns) == (None, ())
    said = {"KATSURA_OPERATOR_FS_GROUP": "65532", "KATSURA_OPERATOR_DNS": "kube-system,169.254.20.10/32"}
    made = OperatorConfig.from_env({**LEAST, **said}).settings
    assert (made.fs_group, made.dns) == (65532, ("kube-system", "169.254.20.10/32"))


def test_measurements_of_the_cluster_come_from_a_file_that_is_read_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "devices.json"
    known = calibration.built_in()
    file.write_text(json.dumps({"devices": {"Own": calibration.coefficients_as_json(known.kinds["gpu"])}}))
    made = OperatorConfig.from_env({**LEAST, "KATSURA_OPERATOR_CALIBRATION_FILE": str(file)})
    assert set(made.settings_with_calibration().measured()) == {"Own"}
    assert OperatorConfig.from_env(LEAST).settings_with_calibration().measured() == {}


@pytest.mark.parametrize("text", [None, "{", '{"devices": {"A": {}}}'])
def test_a_file_without_measurements_is_refused_by_name(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "devices.json"
    if text is not None:
        file.write_text(text)
    made = OperatorConfig.from_env({**LEAST, "KATSURA_OPERATOR_CALIBRATION_FILE": str(file)})
    with pytest.raises(InvalidArgumentError, match=r"CALIBRATION_FILE: .*devices\.json"):
        made.settings_with_calibration()
