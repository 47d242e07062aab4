"""What a member holds and computes: the bits of one process, whoever asks for what, alone or together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from katsura.domain.errors import FailedPreconditionError, OutOfRangeError, ResourceExhaustedError
from katsura.experts.groups import Groups, Holdings, group_bytes
from katsura.model.ffn import FfnInput, LocalFfn
from katsura.model.gate import Routing
from katsura.testing.members import holdings_of
from katsura.weights.load import load_group
from katsura.weights.reader import Checkpoint
from katsura.wire.frame import Dispatch, GroupSums, Routes
from katsura.wire.header import Header, Kind


def routing(rows: int, seed: int = 0) -> Routing:
    weights, ids = torch.topk(torch.softmax(torch.randn(rows, 4, generator=noise(seed)), -1), 2, dim=-1)
    return Routing(ids, weights)


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frame(layer: int, asked: tuple[int, ...], hidden: torch.Tensor, routed: Routing | None, per_group: int) -> Dispatch:
    """What a client would send: all tokens, and the routes of the groups asked for."""
    routes = None
    if routed is not None:
        found = [
            (group, row, unit, weight)
            for row, (ids, weights) in enumerate(zip(routed.ids.tolist(), routed.weights, strict=True))
            for unit, weight in zip(ids, weights, strict=True)
            if (group := unit // per_group) in asked
        ]
        found.sort(key=lambda each: each[:2])
        routes = Routes(
            torch.tensor([each[1] for each in found], dtype=torch.int32),
            torch.tensor([each[2] for each in found], dtype=torch.int32),
            torch.tensor([float(each[3]) for each in found]),
            tuple(sum(each[0] <= group for each in found) for group in asked),
        )
    return Dispatch(Header(Kind.DISPATCH, layer=layer), asked, routes, hidden, b"")


def whole(part: GroupSums, rows: int) -> torch.Tensor:
    if part.rows is None:
        return part.sums
    return torch.zeros(rows, part.sums.shape[1]).index_copy_(0, part.rows.long(), part.sums)


def ask(groups: Groups, family: str, layer: int, asked: tuple[int, ...], rows: int, seed: int) -> Dispatch:
    hidden = torch.randn(rows, 48, generator=noise(100 + seed))
    routed = routing(rows, seed) if family == "mixtral" else None
    return frame(layer, asked, hidden, routed, groups.holdings.layout.units_per_group)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_partials_of_all_groups_add_up_to_the_bits_of_one_process(groups: Groups, family: str, rows: int) -> None:
    layers = range(groups.holdings.config.shape.layer_count)
    h = groups.holdings
    with Checkpoint(h.folder) as checkpoint:
        whole_model = [
            [load_group(checkpoint, h.config, h.layout, layer, group, h.kernels) for group in range(2)]
            for layer in layers
        ]
    local = LocalFfn(whole_model, h.kernels)
    for layer in layers:
        asked = ask(groups, family, layer, (0, 1), rows, seed=layer)
        first, second = (whole(part, rows) for part in groups.compute([asked])[0])
        routed = routing(rows, layer) if family == "mixtral" else None
        assert torch.equal(first + second, local.apply(layer, FfnInput(asked.hidden, routed)))


def test_frames_computed_together_have_the_bits_of_each_alone(groups: Groups, family: str) -> None:
    frames = [
        ask(groups, family, 1, asked, rows, seed)
        for seed, (asked, rows) in enumerate([((0, 1), 5), ((1,), 1), ((0, 1), 17), ((0,), 2)])
    ]
    together = groups.compute(frames)
    for each, parts in zip(frames, together, strict=True):
        alone = groups.compute([each])[0]
        assert [part.group for part in parts] == list(each.groups)
        for part, lone in zip(parts, alone, strict=True):
            assert torch.equal(part.sums, lone.sums)
            assert (part.rows is None) == (lone.rows is None)


def test_a_token_gets_a_partial_only_from_groups_that_it_uses(folders: dict[str, object]) -> None:
    holdings = holdings_of(folders["mixtral"], slices=4, groups=2)  # type: ignore[arg-type]
    groups = Groups(holdings, Checkpoint(holdings.folder))
    groups.load((0, 0))
    groups.load((0, 1))
    routed = Routing(torch.tensor([[0, 1], [2, 3], [1, 0]]), torch.full((3, 2), 0.5))
    parts = groups.compute([frame(0, (0, 1), torch.randn(3, 48), routed, 2)])[0]
    assert [part.rows.tolist() for part in parts if part.rows is not None] == [[0, 2], [1]]


def test_bytes_are_counted_and_given_back(holdings: Holdings) -> None:
    checkpoint = Checkpoint(holdings.folder)
    groups = Groups(holdings, checkpoint)
    each = group_bytes(holdings.config.shape, holdings.layout, holdings.kernels)
    for key in ((0, 1), (0, 1), (2, 0)):
        groups.load(key)
    attention = [name for name in checkpoint.bytes_read if "attn" in name or "embed" in name]
    assert (groups.loaded_bytes, groups.keys, attention) == (2 * each, frozenset({(0, 1), (2, 0)}), [])
    groups.free((0, 1))
    groups.free((0, 1))
    assert (groups.loaded_bytes, groups.has((0, 1)), groups.has((2, 0))) == (each, False, True)


def test_more_than_the_capacity_is_refused_before_anything_is_read(folders: dict[str, object]) -> None:
    small = holdings_of(folders["llama"], 4, 2, capacity_bytes=40_000)  # type: ignore[arg-type]
    groups = Groups(small, Checkpoint(small.folder))
    groups.check([(0, 0), (0, 0)])
    with pytest.raises(ResourceExhaustedError, match="KATSURA_CAPACITY_BYTES"):
        groups.check([(layer, group) for layer in range(3) for group in range(2)])


@pytest.mark.parametrize("key", [(3, 0), (0, 2), (-1, 0)])
def test_what_the_model_has_not_cannot_be_held(groups: Groups, key: tuple[int, int]) -> None:
    with pytest.raises(OutOfRangeError, match="3 layers of 2 groups"):
        groups.check([key])
    with pytest.raises(FailedPreconditionError):
        groups.partial(key, torch.zeros(1, 48), None)


def test_a_group_freed_out_of_a_fused_set_leaves_the_others_with_their_bits(folders: dict[str, object]) -> None:
    holdings = holdings_of(folders["llama"], slices=4, groups=4)  # type: ignore[arg-type]
    groups = Groups(holdings, Checkpoint(holdings.folder))
    for group in range(4):
        groups.load((0, group))
    hidden = torch.randn(3, 48, generator=noise(5))
    alone = [groups.partial((0, group), hidden, None) for group in range(4)]
    groups.fuse(0, (0, 1, 2))
    groups.free((0, 1))
    parts = groups.compute([frame(0, (0, 2, 3), hidden, None, 1)])[0]
    assert [torch.equal(part.sums, alone[part.group]) for part in parts] == [True] * 3
    assert groups.keys == {(0, 0), (0, 2), (0, 3)}


def test_whatever_subsets_are_asked_for_the_bits_are_those_of_each_group_alone(folders: dict[str, object]) -> None:
    holdings = holdings_of(folders["llama"], slices=4, groups=4)  # type: ignore[arg-type]
    groups = Groups(holdings, Checkpoint(holdings.folder))
    for group in range(4):
        groups.load((1, group))
    hidden = torch.randn(2, 48, generator=noise(6))
    alone = [groups.partial((1, group), hidden, None) for group in range(4)]
    for asked in ((0, 1), (1,), (1, 2), (0, 1, 2, 3), (2, 3), (0, 3)):
        if len(asked) != 4:
            groups.fuse(1, asked)
        parts = groups.compute([frame(1, asked, hidden, None, 1)])[0]
        assert [part.group for part in parts] == list(asked)
        assert all(torch.equal(part.sums, alone[part.group]) for part in parts)


def test_a_member_that_another_joins_computes_no_more_than_its_new_share(folders: dict[str, object]) -> None:
    """The first member of a pool is primary of everything for a while; its fused sets must not outlive that."""
    holdings = holdings_of(folders["llama"], slices=4, groups=4)  # type: ignore[arg-type]
    holdings = replace(holdings, kernels=replace(holdings.kernels, fuse_groups=True))
    groups = Groups(holdings, Checkpoint(holdings.folder))
    for group in range(4):
        groups.load((0, group))
    hidden = torch.randn(2, 48, generator=noise(7))
    alone = groups.partial((0, 1), hidden, None)
    for share in ((0, 1, 2, 3), (0, 1), (1,)):
        groups.fuse(0, share)
        groups.compute([frame(0, share, hidden, None, 1)])
        held = groups.ready(share)[0]
        assert set(held.partials(hidden, None)) == set(share)
        sums = tuple(torch.empty_like(hidden) for _ in share)
        held.write_partials(hidden, sums)
        assert torch.allclose(sums[share.index(1)], alone, atol=1e-5)
