from dataclasses import dataclass

import pytest

from katsura.domain.errors import DataLossError
from katsura.domain.ids import Epoch, InstanceId
from katsura.domain.shape import DType
from katsura.state.records import from_json, to_json


@dataclass(frozen=True, slots=True)
class Inner:
    digest: bytes
    dtype: DType


@dataclass(frozen=True, slots=True)
class Outer:
    name: InstanceId
    epoch: Epoch
    inner: Inner | None
    parts: tuple[Inner, ...] = ()
    load: float = 0.0


FULL = Outer(InstanceId("a"), Epoch(2**63 - 1), Inner(b"\x00\xff", DType.BF16), (Inner(b"", DType.F32),), 0.1)


def test_records_have_one_form_and_come_back_as_they_were() -> None:
    text = to_json(FULL)
    assert text == (
        '{"name":"a","epoch":9223372036854775807,"inner":{"digest":"00ff","dtype":"bf16"},'
        '"parts":[{"digest":"","dtype":"f32"}],"load":0.1}'
    )
    assert from_json(Outer, text) == FULL
    assert from_json(Outer, to_json(Outer(InstanceId("b"), Epoch(0), None))) == Outer(InstanceId("b"), Epoch(0), None)


def test_another_versions_fields_are_skipped_and_its_missing_ones_take_their_default() -> None:
    text = '{"name":"a","epoch":1,"inner":null,"load":3,"invented_later":[1,2]}'
    assert from_json(Outer, text) == Outer(InstanceId("a"), Epoch(1), None, load=3.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"name":"a"}',
        '{"name":1,"epoch":1,"inner":null}',
        '{"name":"a","epoch":1,"inner":{"digest":"zz","dtype":"f32"}}',
        '{"name":"a","epoch":1,"inner":{"digest":"00","dtype":"f8"}}',
    ],
)
def test_what_is_no_record_is_said_to_be_lost(text: str) -> None:
    with pytest.raises(DataLossError, match="Outer"):
        from_json(Outer, text)


def test_only_plain_data_has_a_form() -> None:
    with pytest.raises(TypeError):
        to_json(object())
