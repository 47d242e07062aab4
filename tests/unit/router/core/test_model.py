from dataclasses import replace

import pytest

from katsura.domain.errors import InvalidArgumentError, NotFoundError, OutOfRangeError, Reason, UnavailableError
from katsura.domain.ids import DeploymentName
from katsura.domain.leases import ShardLease
from katsura.router.core.endpoints import plan_endpoints
from katsura.router.core.model import models, pick_model
from katsura.testing.fleet import DEPLOYMENT, REVISION, shard_record


def shard(name: str, deployment: str = "demo", alias: str = "tiny", ready: bool = True) -> ShardLease:
    revision = replace(REVISION, deployment=DeploymentName(deployment))
    return replace(shard_record(name), revision=revision, aliases=(alias,), ready=ready, not_ready_reason="loading")


BOTH = models([shard("a"), shard("b", "other", "big"), shard("c", "other", "big")], [])


def test_deployments_are_listed_by_name_from_their_shards() -> None:
    assert [(m.name, len(m.table.shards), m.not_ready_reason) for m in BOTH] == [("demo", 1, ""), ("other", 2, "")]


def test_a_deployment_whose_shards_are_gone_is_still_known_from_its_table() -> None:
    table = plan_endpoints(DEPLOYMENT, [shard("a")], None)
    assert table is not None
    (found,) = models([], [table])
    assert (found.name, found.not_ready_reason) == ("demo", "no shard is registered")
    assert found.table.aliases == ("tiny",)


@pytest.mark.parametrize(
    ("asked", "name", "reason"),
    [
        ("demo", "demo", "demo: asked for by name."),
        ("big", "other", "other: asked for by its alias big."),
    ],
)
def test_a_model_is_found_by_name_or_alias(asked: str, name: str, reason: str) -> None:
    found = pick_model(asked, 0, BOTH)
    assert (found.model.name, found.reason) == (name, reason)
    assert [s.score for s in found.scores] == [1.0, 0.0]
    assert found.scores[0].name == name


def test_a_name_goes_before_an_alias() -> None:
    found = pick_model("other", 0, models([shard("a", alias="other"), shard("b", "other")], []))
    assert found.model.name == "other"


def test_auto_is_the_only_deployment() -> None:
    assert pick_model("auto", 0, BOTH[:1]).reason == "demo: the only deployment."


@pytest.mark.parametrize("asked", ["", "auto"])
def test_what_names_no_model_is_an_invalid_argument(asked: str) -> None:
    with pytest.raises(InvalidArgumentError, match="demo, other") as refused:
        pick_model(asked, 0, BOTH)
    assert refused.value.field == "model"


@pytest.mark.parametrize(("asked", "known"), [("gpt", "demo, other"), ("Demo", "demo, other")])
def test_an_unknown_model_is_answered_with_what_exists(asked: str, known: str) -> None:
    with pytest.raises(NotFoundError, match=known) as refused:
        pick_model(asked, 0, BOTH)
    assert (refused.value.reason, refused.value.field) == (Reason.MODEL_NOT_FOUND, "model")


@pytest.mark.parametrize("asked", ["auto", "demo"])
def test_without_any_deployment_that_is_said(asked: str) -> None:
    with pytest.raises(NotFoundError, match="none yet"):
        pick_model(asked, 0, ())


def test_a_context_that_does_not_fit_is_out_of_range() -> None:
    assert pick_model("demo", 2048, BOTH).model.name == "demo"
    with pytest.raises(OutOfRangeError, match="2048") as refused:
        pick_model("demo", 2049, BOTH)
    assert refused.value.reason is Reason.CONTEXT_TOO_LONG


def test_a_model_that_cannot_serve_says_why_of_each_shard() -> None:
    shards = [shard("a", ready=False), replace(shard("b"), draining=True)]
    with pytest.raises(UnavailableError, match="a is not ready: loading; b is draining") as refused:
        pick_model("demo", 0, models(shards, []))
    assert refused.value.reason is Reason.NO_SHARD
