"""From resources to processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from katsura.cli.core.layout import Layout, Place, ProcessSpec, Role, lay_out, valkey_args
from katsura.domain.errors import InvalidArgumentError
from katsura.manifests.bundle import read_manifests
from katsura.manifests.stores import Durability

PLACE = Place(run_dir="/run/k", data_dir="/data", http_listen="127.0.0.1:8080", token="s3cret")
SAMPLES = Path(__file__).parents[4] / "deploy" / "samples"


def laid_out(sample: str, place: Place = PLACE) -> Layout:
    bundle = read_manifests([(sample, (SAMPLES / sample).read_text("utf-8"))])
    return lay_out(bundle, place, {d.metadata.name: "/models/m" for d in bundle.deployments})


def by_name(layout: Layout) -> dict[str, ProcessSpec]:
    return {spec.name: spec for spec in layout.processes}


def test_the_demo_runs_every_role_as_a_process_of_its_own() -> None:
    assert list(by_name(laid_out("demo.yaml"))) == [
        "store",
        "memory-0",
        "router-0",
        "experts-0",
        "experts-1",
        "attention-0",
        "gateway",
    ]


def test_unified_has_an_engine_instead_of_shard_and_members() -> None:
    assert list(by_name(laid_out("unified.yaml"))) == ["store", "memory-0", "router-0", "engine-0", "gateway"]


def test_replicas_multiply_and_the_gateway_knows_all_routers() -> None:
    layout = laid_out("replicated.yaml")
    names = by_name(layout)
    assert {"attention-0", "attention-1", "experts-0", "experts-1", "router-0", "router-1", "hints"} <= names.keys()
    assert names["gateway"].env["KATSURA_ROUTER_ADDRESSES"] == "unix:/run/k/router-0.sock,unix:/run/k/router-1.sock"
    assert layout.hints_url == "unix:///run/k/hints.sock"
    assert layout.store_url == "unix:///run/k/store.sock"


def test_one_server_plays_both_stores_unless_told_otherwise() -> None:
    layout = laid_out("demo.yaml")
    assert layout.hints_url == layout.store_url == "unix:///run/k/store.sock"
    assert by_name(layout)["memory-0"].env["KATSURA_STORE_URL"] == "unix:///run/k/store.sock"


def test_a_server_of_somebody_else_is_used_and_not_started() -> None:
    for layout in (laid_out("demo.yaml", replace(PLACE, redis_url="redis://h:1/0")), laid_out("custom.yaml")):
        assert "store" not in by_name(layout)
        assert layout.store_url.startswith("redis://")
        assert by_name(layout)["router-0"].env["KATSURA_HINTS_URL"] == layout.store_url


def test_what_the_manifest_says_reaches_the_processes() -> None:
    names = by_name(laid_out("custom.yaml"))
    shard, member = names["attention-0"].env, names["experts-3"].env
    assert shard["KATSURA_KV_BYTES"] == str(4 * 2**30)
    assert (shard["KATSURA_CONTEXT_TOKENS"], shard["KATSURA_STEP_TOKENS"]) == ("8192", "512")
    for env in (shard, member):
        assert (env["KATSURA_DTYPE"], env["KATSURA_NUMERICS"]) == ("bf16", "fast")
        assert (env["KATSURA_FFN_SLICES"], env["KATSURA_FFN_GROUPS"]) == ("16", "8")
        assert (env["KATSURA_DEPLOYMENT"], env["KATSURA_MODEL_ALIASES"]) == ("my-model", "my-model-latest")
    assert "KATSURA_KV_BYTES" not in member


def test_what_has_no_effect_here_is_said() -> None:
    assert laid_out("custom.yaml").notes == (
        "Agent researcher was checked; nothing in a local run enforces its budgets",
    )
    assert laid_out("demo.yaml").notes == ()


def test_the_context_is_the_models_own_unless_it_is_said() -> None:
    assert "KATSURA_CONTEXT_TOKENS" not in by_name(laid_out("unified.yaml"))["engine-0"].env


def test_processes_drain_before_the_signal_that_cannot_be_refused() -> None:
    for spec in laid_out("demo.yaml").processes:
        if not spec.role.is_store:
            assert float(spec.env["KATSURA_DRAIN_TIMEOUT_S"]) < spec.grace_s


def test_the_front_ends_first_and_the_store_last() -> None:
    ranks = {spec.role: spec.rank for spec in laid_out("demo.yaml").processes}
    order = sorted(ranks, key=ranks.__getitem__, reverse=True)
    assert order == [Role.GATEWAY, Role.ATTENTION, Role.EXPERTS, Role.ROUTER, Role.MEMORY, Role.STORE]


def test_metrics_have_a_port_per_process_when_asked_for() -> None:
    layout = laid_out("demo.yaml", replace(PLACE, metrics_port=9100))
    ports = [spec.env["KATSURA_METRICS_LISTEN"] for spec in layout.processes[1:-1]]
    assert "KATSURA_METRICS_LISTEN" not in layout.processes[-1].env  # its own port has /metrics
    assert ports == [f"127.0.0.1:{9100 + i}" for i in range(5)]


@pytest.mark.parametrize(
    ("listen", "keyless"),
    [("127.0.0.1:1", "true"), ("[::1]:1", "true"), ("0.0.0.0:1", "false"), ("10.0.0.1:1", "false")],
)
def test_requests_without_a_key_are_served_on_loopback_only(listen: str, keyless: str) -> None:
    gateway = laid_out("demo.yaml", replace(PLACE, http_listen=listen)).processes[-1]
    assert gateway.env["KATSURA_ALLOW_KEYLESS"] == keyless


def test_two_models_share_router_and_memory() -> None:
    text = (SAMPLES / "demo.yaml").read_text("utf-8")
    other = (SAMPLES / "unified.yaml").read_text("utf-8").replace("smollm2", "second").replace("katsura-demo", "other")
    bundle = read_manifests([("a", text), ("b", other)])
    layout = lay_out(bundle, PLACE, {d.metadata.name: "/m" for d in bundle.deployments})
    roles = [spec.role for spec in layout.processes]
    assert roles.count(Role.ROUTER) == roles.count(Role.MEMORY) == roles.count(Role.GATEWAY) == 1
    assert {"smollm2-135m-instruct-attention-0", "second-135m-instruct-engine-0"} <= by_name(layout).keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing to serve"),
        (
            "apiVersion: katsura.dev/v1alpha1\nkind: MemoryStore\nmetadata: {name: a}\nspec: {}\n---\n"
            "apiVersion: katsura.dev/v1alpha1\nkind: MemoryStore\nmetadata: {name: b}\nspec: {}\n---\n"
            "apiVersion: katsura.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {name: m}\n"
            "spec: {model: {source: 'pypi://x'}}\n",
            "one MemoryStore, these files have a, b",
        ),
    ],
)
def test_what_one_machine_cannot_run_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        lay_out(read_manifests([("f", text)]), PLACE, {"m": "/m"})


def test_a_run_folder_too_long_for_sockets_is_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidArgumentError, match="TMPDIR"):
        laid_out("demo.yaml", replace(PLACE, run_dir="/" + "x" * 100))


@pytest.mark.parametrize(
    ("durability", "append", "fsync"),
    [(Durability.STRICT, "yes", "always"), (Durability.RELAXED, "yes", "everysec"), (Durability.CACHE, "no", "no")],
)
def test_durability_is_how_the_embedded_server_writes(durability: Durability, append: str, fsync: str) -> None:
    args = valkey_args("/s", "/d", durability)
    settings = dict(zip(args[::2], args[1::2], strict=True))
    assert (settings["--appendonly"], settings["--appendfsync"]) == (append, fsync)
    assert settings["--maxmemory-policy"] == "noeviction"


def test_only_hints_may_be_evicted() -> None:
    args = valkey_args("/s", "/d", Durability.CACHE, evict_bytes=1000)
    settings = dict(zip(args[::2], args[1::2], strict=True))
    assert (settings["--maxmemory"], settings["--maxmemory-policy"]) == ("1000", "allkeys-lru")


def test_an_external_engine_is_refused_and_settings_of_a_cluster_are_told() -> None:
    head = "apiVersion: katsura.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {name: m}\nspec:\n"
    model = "  model: {source: 'file:///m'}\n"
    place = Place("/run", "/data", "127.0.0.1:80", "t")
    external = read_manifests([("f", f"{head}{model}  engine: external\n  external: {{image: vllm}}\n")])
    with pytest.raises(InvalidArgumentError, match="needs a cluster"):
        lay_out(external, place, {"m": "/m"})
    advisory = read_manifests([("f", f"{head}{model}  placement: {{advisory: true}}\n")])
    assert lay_out(advisory, place, {"m": "/m"}).notes == ("m: only a cluster heeds placement",)


def test_an_archive_is_a_folder_here_and_what_only_a_cluster_does_is_said() -> None:
    store = "apiVersion: katsura.dev/v1alpha1\nkind: MemoryStore\nmetadata: {name: default}\nspec: "
    demo = (SAMPLES / "demo.yaml").read_text("utf-8").partition("---")[0]
    said = store + "{archive: {pvc: cold, afterSeconds: 60}, deletionPolicy: Delete}"
    bundle = read_manifests([("m", demo), ("s", said)])
    layout = lay_out(bundle, PLACE, {d.metadata.name: "/models/m" for d in bundle.deployments})
    env = by_name(layout)["memory-0"].env
    assert (env["KATSURA_MEMORY_COLD_FOLDER"], env["KATSURA_MEMORY_COLD_AFTER_S"]) == ("/data/cold", "60")
    assert any("archive.pvc" in note for note in layout.notes)
    assert any("deletionPolicy" in note for note in layout.notes)
