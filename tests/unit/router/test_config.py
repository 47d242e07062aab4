import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.router.config import RouterConfig

SHARED = {"KATSURA_INTERNAL_TOKEN": "t", "KATSURA_INSTANCE_ID": "r1"}


def test_the_hints_store_is_the_durable_one_unless_another_is_named() -> None:
    assert RouterConfig.from_env({**SHARED, "KATSURA_STORE_URL": "unix:///d"}).hints_url == "unix:///d"
    both = {**SHARED, "KATSURA_STORE_URL": "unix:///d", "KATSURA_HINTS_URL": "unix:///h"}
    assert RouterConfig.from_env(both).hints_url == "unix:///h"
    assert RouterConfig.from_env({**SHARED, "KATSURA_HINTS_URL": "unix:///h"}).hints_url == "unix:///h"


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        RouterConfig.from_env({"KATSURA_ROUTER_PREPARE_PATIENCE_S": "soon", "KATSURA_HINT_URL": "x"})
    for name in (
        "KATSURA_INTERNAL_TOKEN",
        "KATSURA_HINTS_URL",
        "KATSURA_ROUTER_PREPARE_PATIENCE_S",
        "KATSURA_HINT_URL",
    ):
        assert name in refused.value.message


def test_patience_is_in_seconds() -> None:
    environment = {**SHARED, "KATSURA_HINTS_URL": "unix:///h", "KATSURA_ROUTER_PREPARE_PATIENCE_S": "2.5"}
    config = RouterConfig.from_env(environment)
    assert (config.prepare_patience_s, config.serve.role, config.serve.instance_id) == (2.5, "router", "r1")
