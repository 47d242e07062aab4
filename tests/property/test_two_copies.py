"""A planned expert pool of any model has room for two copies: from the plan over its pods to the table."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from katsura.domain.ids import Epoch, InstanceId
from katsura.domain.shape import DType, FfnLayout, Numerics, layout_for
from katsura.domain.tables import ExpertTable
from katsura.domain.units import GIB
from katsura.experts.config import MemberConfig
from katsura.experts.groups import group_bytes
from katsura.model.config import parse_config
from katsura.model.kernels import AttentionBackend, AttentionKernel, KernelPlan
from katsura.placement.card import published, read_card
from katsura.placement.cost import BF16
from katsura.placement.split import COPIES, member_bytes
from katsura.router.core.assign import ALTERNATES, assign, table_of
from katsura.testing.fleet import member_record
from katsura.testing.operators import World
from katsura_operator.core.settings import Settings

NODES = Settings("space", "services:1", "engine:1", nodes_observed=True)
MIXTRAL, LLAMA = "mistralai/Mixtral-8x7B-Instruct-v0.1", "meta-llama/Llama-3.1-8B-Instruct"


def node(world: World, name: str) -> None:
    amounts = {"cpu": "64", "memory": "512Gi"}
    status = {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}
    metadata = {"name": name, "labels": {"kubernetes.io/hostname": name}}
    world.plane.call("POST", "/api/v1/nodes", {"metadata": metadata, "status": status})


def table_over(members: int, capacity_bytes: int, model: str, dtype: DType, cut: FfnLayout) -> ExpertTable:
    """The first table of a pool whose members say so of themselves."""
    shape = parse_config(published()[model]).shape
    kernels = KernelPlan(dtype, Numerics.INVARIANT, {}, AttentionKernel(AttentionBackend.FLASH))
    lease = replace(
        member_record("m"),
        layer_count=shape.layer_count,
        layout=cut,
        group_bytes=group_bytes(shape, cut, kernels),
        capacity_bytes=capacity_bytes,
    )
    layout = assign([replace(lease, instance_id=InstanceId(f"m{n}"), start_ms=n) for n in range(members)], None)
    assert layout is not None
    return ExpertTable(lease.deployment, lease.revision_id, Epoch(1), shape.layer_count, cut, table_of(layout))


def copies(table: ExpertTable) -> set[int]:
    """Members that hold a group, over all groups of all layers."""
    keys = ((layer, group) for layer in range(table.layer_count) for group in range(table.layout.group_count))
    return {sum(a.holds(*key) for a in table.assignments) for key in keys}


async def pool_of(model: str, members: int | None, groups: int, dtype: DType) -> tuple[int, dict[str, Any]]:
    """Members and their container, as an operator makes them of a plan."""
    world = World.in_memory(NODES)
    for name in ("n1", "n2", "n3", "n4"):
        node(world, name)
    spec: dict[str, Any] = {"model": {"source": "file:///models/m", "card": model}, "topology": "Split"}
    spec |= {"dtype": dtype.value, "ffn": {"slices": 8, "groups": groups}}
    if members is not None:
        spec["roles"] = {"experts": {"replicas": members}}
    world.apply("ModelDeployment", "chat", spec)
    await world.settle()
    assert world.condition("ModelDeployment", "chat")["reason"] == "AllRolesReady"
    (workload,) = (w for w in world.all("Deployment") if "-experts-" in w["metadata"]["name"])
    return workload["spec"]["replicas"], workload["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("model", "members", "groups", "dtype"),
    [
        (MIXTRAL, None, 4, DType.BF16),
        (MIXTRAL, 2, 4, DType.BF16),
        (MIXTRAL, 3, 4, DType.BF16),
        (MIXTRAL, 4, 8, DType.BF16),
        (MIXTRAL, 6, 4, DType.BF16),
        (MIXTRAL, 8, 4, DType.BF16),
        (LLAMA, 2, 1, DType.F32),
        (LLAMA, 3, 8, DType.F32),
    ],
)
async def test_every_group_of_a_planned_pool_has_two_copies(
    model: str, members: int | None, groups: int, dtype: DType
) -> None:
    count, container = await pool_of(model, members, groups, dtype)
    assert count >= 2
    assert members in (None, count)
    told = {e["name"]: e.get("value", "redis://a") for e in container["env"]}
    capacity = MemberConfig.from_env({**told, "POD_IP": "10.0.0.1"}).capacity_bytes
    limit = int(container["resources"]["limits"]["memory"].removesuffix("Mi")) << 20
    assert limit >= capacity + GIB
    cut = layout_for(parse_config(published()[model]).shape, 8, groups)
    assert copies(table_over(count, capacity, model, dtype, cut)) == {2}


def test_the_planner_and_the_coordinator_mean_the_same_by_copies() -> None:
    assert COPIES == 1 + ALTERNATES


@given(st.integers(1, 20), st.sampled_from([1, 2, 4, 7, 8, 14]))
@settings(deadline=None)
def test_what_the_planner_gives_a_member_is_enough_however_many_there_are(members: int, groups: int) -> None:
    capacity = ceil(member_bytes(read_card(published()[LLAMA]), BF16, members, 1, groups))
    table = table_over(members, capacity, LLAMA, DType.BF16, FfnLayout(groups, groups))
    assert copies(table) == {min(COPIES, members)}
