"""A fingerprint names weights and kernels, and nothing that may differ between members that agree."""

from __future__ import annotations

import time

import torch

from katsura.experts.canary import canary_digest, fingerprint, measure
from katsura.experts.groups import Groups, Holdings
from katsura.model.kernels import KernelPlan


def printed(holdings: Holdings, digest: bytes = b"w" * 32) -> str:
    return fingerprint(digest, holdings.config.shape, holdings.layout, holdings.kernels)


def test_equal_members_have_equal_fingerprints(holdings: Holdings) -> None:
    torch.manual_seed(1)
    first = printed(holdings)
    torch.manual_seed(2)
    assert printed(holdings) == first


def test_other_weights_or_kernels_have_another_fingerprint(holdings: Holdings) -> None:
    plan = holdings.kernels.to_json()
    plan["linear"] = {key: ["plain", 16, 16] for key in plan["linear"]}  # type: ignore[attr-defined]
    other = Holdings(holdings.folder, holdings.config, holdings.layout, KernelPlan.from_json(plan), 0)
    assert len({printed(holdings), printed(holdings, b"v" * 32), printed(other)}) == 3


def test_a_group_digest_tells_groups_apart_and_one_flipped_bit(groups: Groups) -> None:
    shape, kernels = groups.holdings.config.shape, groups.holdings.kernels

    def digest(group: int) -> bytes:
        units = groups.holdings.layout.units_of(group)
        return canary_digest(lambda hidden, routing: groups.partial((0, group), hidden, routing), units, shape, kernels)

    assert digest(0) == digest(0) != digest(1)


def test_costs_are_measured_by_the_clock_that_is_handed_in(holdings: Holdings) -> None:
    cost = measure(holdings.config.shape, holdings.layout, holdings.kernels, time.perf_counter)
    assert cost.predict_s(1, 1) > 0
