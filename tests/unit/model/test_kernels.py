from __future__ import annotations

import json

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.shape import DType, Numerics
from katsura.model.kernels import AttentionBackend, AttentionKernel, KernelPlan, LinearBackend, LinearKernel

PLAN = KernelPlan(
    DType.BF16,
    Numerics.INVARIANT,
    {(576, 960): LinearKernel(LinearBackend.PACKED, 2, 512), (8, 4): LinearKernel(LinearBackend.PLAIN)},
    AttentionKernel(AttentionBackend.FLASH_F32, 4),
    fuse_groups=True,
)


def test_a_plan_survives_json():
    assert KernelPlan.from_json(json.loads(json.dumps(PLAN.to_json()))) == PLAN


def test_a_plan_of_another_model_says_so():
    with pytest.raises(InvalidArgumentError, match="960 x 577 weight"):
        PLAN.linear_for(577, 960)


@pytest.mark.parametrize(
    "change", [{"dtype": "f16"}, {"linear": []}, {"linear": {"8": ["plain", 1, 0]}}, {"attention": ["flash"]}]
)
def test_what_is_not_a_plan_is_refused(change):
    with pytest.raises(InvalidArgumentError, match="not a kernel plan"):
        KernelPlan.from_json(PLAN.to_json() | change)
