"""The chart as Helm renders it: closed values, restricted pods, the environment that processes read, few rights."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import yaml
from chart_variants import PEM, VARIANTS

from katsura.cli.door import build_parser as door_parser
from katsura.cli.main import build_parser
from katsura.gateway.config import GatewayConfig
from katsura.manifests.bundle import read_manifests
from katsura.rpc.channel import TLS_NAME
from katsura_operator.config import Certificates, OperatorConfig
from katsura_operator.core.pods import TLS_SECRET

PROJECT = Path(__file__).resolve().parents[2]
CHART = PROJECT / "charts" / "katsura"
KUBERNETES = "1.35.0"
Documents = list[dict[str, Any]]
Render = Callable[..., Documents]


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, render: Render) -> Documents:
    return render(*VARIANTS[request.param])


def pods(documents: Documents) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that the chart runs, by the name of its object."""
    for document in documents:
        name = f"{document['kind']}/{document['metadata']['name']}"
        if document["kind"] == "Pod":
            yield name, document
        elif "template" in document.get("spec", {}):
            yield name, document["spec"]["template"]


def one(documents: Documents, kind: str, name: str) -> dict[str, Any]:
    (found,) = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


def test_every_object_has_one_name_its_namespace_and_our_label(variant: Documents) -> None:
    names = [(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in variant]
    assert len(set(names)) == len(names)
    for document in variant:
        cluster_wide = document["kind"] in ("ClusterRole", "ClusterRoleBinding")
        assert document["metadata"].get("namespace") in ((None,) if cluster_wide else ("ns", "team"))
        assert document["metadata"]["labels"]["app.kubernetes.io/part-of"] == "katsura"


def test_every_pod_is_restricted(variant: Documents) -> None:
    found = dict(pods(variant))
    assert found
    for name, template in found.items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert all(
            {"secret", "configMap", "emptyDir", "persistentVolumeClaim"} & set(v) for v in spec.get("volumes", ())
        ), name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert set(container["resources"]) == {"requests", "limits"}, name


def test_only_who_asks_the_api_server_carries_a_token(variant: Documents) -> None:
    carriers = {t["metadata"]["labels"]["katsura.dev/role"] for _, t in pods(variant) if token(t["spec"])}
    assert carriers - {"operator"} == {"test", "cleanup"}


def token(spec: dict[str, Any]) -> bool:
    return bool(spec["automountServiceAccountToken"])


def test_no_service_link_becomes_an_unknown_variable(variant: Documents) -> None:
    assert all(template["spec"]["enableServiceLinks"] is False for _, template in pods(variant))


def test_selectors_survive_an_upgrade(variant: Documents) -> None:
    for document in variant:
        if "template" in document.get("spec", {}) and "selector" in document["spec"]:
            assert set(document["spec"]["selector"]["matchLabels"]) == {
                "app.kubernetes.io/part-of",
                "katsura.dev/role",
            }


def test_no_right_is_a_wildcard(variant: Documents) -> None:
    for document in variant:
        if document["kind"] in ("Role", "ClusterRole"):
            for rule in document["rules"]:
                assert not {"*"} & {*rule["verbs"], *rule["resources"], *rule["apiGroups"]}, document["metadata"][
                    "name"
                ]


def test_what_the_chart_serves_are_manifests_that_we_read(variant: Documents) -> None:
    ours = [d for d in variant if d["apiVersion"].startswith("katsura.dev/")]
    bundle = read_manifests([("chart", yaml.safe_dump_all(ours))])
    assert len(bundle.memory_stores) == 1


def environment(container: dict[str, Any]) -> dict[str, str]:
    """What the process reads, with a stand-in for what comes from elsewhere."""
    stand_in = {"KATSURA_STORE_URL": "redis://s:6379", "KATSURA_INTERNAL_TOKEN": "token"}
    return {e["name"]: e["value"] if "value" in e else stand_in.get(e["name"], "x") for e in container["env"]}


def test_the_gateway_understands_every_variable_that_it_is_given(variant: Documents) -> None:
    (container,) = one(variant, "Deployment", "katsura-gateway")["spec"]["template"]["spec"]["containers"]
    config = GatewayConfig.from_env(environment(container))
    assert config.tls is not None
    assert not config.allow_keyless


def test_the_operator_understands_every_variable_that_it_is_given(render: Render) -> None:
    for values in VARIANTS.values():
        documents = render(*values)
        if any(d["metadata"]["name"] == "katsura-operator" for d in documents if d["kind"] == "Deployment"):
            (container,) = one(documents, "Deployment", "katsura-operator")["spec"]["template"]["spec"]["containers"]
            OperatorConfig.from_env(environment(container))


def test_spans_go_where_the_values_say_from_the_gateway_and_from_what_the_operator_makes(render: Render) -> None:
    documents = render(*VARIANTS["traced"])
    for name in ("katsura-gateway", "katsura-operator"):
        (container,) = one(documents, "Deployment", name)["spec"]["template"]["spec"]["containers"]
        said = environment(container)
        assert said["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector.monitoring:4317"
        assert (said["OTEL_TRACES_SAMPLER"], said["OTEL_TRACES_SAMPLER_ARG"]) == ("parentbased_traceidratio", "0.5")
    assert "OTEL_TRACES_SAMPLER_ARG=0.5" in OperatorConfig.from_env(said).settings.tracing
    assert not [d for d in render() if "OTEL_" in json.dumps(d)]


def test_the_operator_gets_the_rights_of_its_own_list_and_no_more(render: Render) -> None:
    rules = yaml.safe_load((CHART / "files" / "operator-rules.yaml").read_text())
    documents = render()
    assert one(documents, "Role", "katsura-operator")["rules"] == rules["namespaced"]
    assert one(documents, "Role", "katsura-operator-own")["rules"] == rules["own"]
    assert not [d for d in documents if d["kind"].startswith("ClusterRole")], (
        "a namespace needs no right on the cluster"
    )
    everywhere = one(render(*VARIANTS["whole-cluster"]), "ClusterRole", "katsura-operator-ns")
    assert everywhere["rules"] == rules["namespaced"] + rules["profiles"] + rules["cluster"]
    assert one(render("operator.profiles=true"), "ClusterRole", "katsura-operator-ns")["rules"] == rules["profiles"]


def test_images_follow_registry_tag_and_digest(render: Render) -> None:
    def images(*values: str) -> set[str]:
        return {c["image"] for _, t in pods(render(*values)) for c in t["spec"]["containers"]}

    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert images() == {f"katsura/services:{version}-demo", f"katsura/operator:{version}"}
    assert images("demo.enabled=false") == {f"katsura/services:{version}", f"katsura/operator:{version}"}
    assert f"registry.example.org/katsura/services@sha256:{'a' * 64}" in images(*VARIANTS["pinned"])
    assert "katsura/operator:v7" in images("image.operator.tag=v7")


def test_kind_is_told_to_load_the_images_that_its_values_ask_for(helm: Any) -> None:
    folder = PROJECT / "deploy" / "kind"
    done = helm.run("template", "--kube-version", KUBERNETES, "-f", str(folder / "values.yaml"))
    assert done.returncode == 0, done.stderr
    documents = [d for d in yaml.safe_load_all(done.stdout) if d]
    (operator,) = one(documents, "Deployment", "katsura-operator")["spec"]["template"]["spec"]["containers"]
    engine = next(e["value"] for e in operator["env"] if e["name"] == "KATSURA_OPERATOR_ENGINE_IMAGE")
    asked = {c["image"] for _, template in pods(documents) for c in template["spec"]["containers"]} | {engine}
    assert len(asked) == 3
    load = (folder / "cluster.yaml").read_text().split("kind load", 1)[1].split("helm install", 1)[0]
    assert asked == set(re.findall(r"localhost/[^ \n]+", load))


def test_the_bundled_store_and_its_clients_share_one_password(render: Render) -> None:
    secret = one(render(), "Secret", "katsura")["stringData"]
    rights = (CHART / "files" / "store-rights.txt").read_text().strip()
    assert secret["valkey.conf"] == f"user default off\nuser katsura on >{secret['valkey-password']} {rights}\n"
    said = urlsplit(secret["store-url"])
    assert (said.scheme, said.hostname, said.port) == ("rediss", "katsura-valkey.ns.svc", 6379)
    assert (said.username, said.password) == ("katsura", secret["valkey-password"])
    assert len(secret["internal-token"]) >= 32


def test_every_file_that_a_store_url_names_is_mounted_where_it_is_read(render: Render) -> None:
    for values in (VARIANTS["default"], VARIANTS["private-authority"]):
        documents = render(*values)
        secret = one(documents, "Secret", "katsura")["stringData"]
        names = [v for k, v in parse_qsl(urlsplit(secret["store-url"]).query) if k.startswith("ssl_") and v[0] == "/"]
        assert len(names) == 3
        for _, template in pods(documents):
            (container,) = template["spec"]["containers"]
            readers = [e for e in container.get("env", ()) if "store-url" in json.dumps(e)]
            mounts = {m["mountPath"] for m in container["volumeMounts"]}
            assert not readers or {name.rpartition("/")[0] for name in names} <= mounts
    files = {item["key"] for v in template_volumes(documents) for item in v.get("secret", {}).get("items", ())}
    assert {"store-ca.crt", "store-tls.crt", "store-tls.key"} <= files & set(secret)


def template_volumes(documents: Documents) -> list[dict[str, Any]]:
    return [volume for _, template in pods(documents) for volume in template["spec"].get("volumes", ())]


def test_the_bundled_store_is_behind_the_door(render: Render) -> None:
    (container,) = one(render(), "StatefulSet", "katsura-valkey")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python3", "-m", "katsura.cli.door"]
    said = door_parser().parse_args(container["args"])
    assert (said.listen, str(said.tls)) == ("0.0.0.0:6379", "/etc/katsura/tls")
    assert said.arguments[0] == "/etc/valkey/valkey.conf"
    assert "--port" not in said.arguments


def test_cert_manager_keeps_what_pods_mount_and_the_operator_only_reads_it(render: Render) -> None:
    documents = render(*VARIANTS["cert-manager"])
    made = one(documents, "Certificate", "katsura-tls")["spec"]
    assert made["secretName"] == TLS_SECRET
    assert made["dnsNames"] == [TLS_NAME]
    assert {"server auth", "client auth"} <= set(made["usages"])
    assert made["issuerRef"]["name"] == one(documents, "Issuer", "katsura-ca")["metadata"]["name"]
    assert one(documents, "Certificate", "katsura-ca")["spec"]["isCA"] is True
    (container,) = one(documents, "Deployment", "katsura-operator")["spec"]["template"]["spec"]["containers"]
    assert OperatorConfig.from_env(environment(container)).certificates is Certificates.GIVEN
    secrets = [r for d in documents if d["kind"] == "Role" for r in d["rules"] if "secrets" in r["resources"]]
    operators = [r for r in secrets if "katsura-ca" not in r.get("resourceNames", ())]
    assert operators == [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": [TLS_SECRET], "verbs": ["get"]}]


def test_an_issuer_of_yours_signs_without_an_authority_of_ours(render: Render) -> None:
    documents = render(*VARIANTS["cert-manager-of-yours"])
    assert [d["metadata"]["name"] for d in documents if "cert-manager" in d["apiVersion"]] == ["katsura-tls"]
    said = one(documents, "Certificate", "katsura-tls")["spec"]["issuerRef"]
    assert said == {"name": "company", "kind": "ClusterIssuer", "group": "cert-manager.io"}


def test_a_route_leads_to_the_gateway_s_service(render: Render) -> None:
    documents = render(*VARIANTS["http-route"])
    route = one(documents, "HTTPRoute", "katsura-gateway")["spec"]
    service = one(documents, "Service", "katsura-gateway")
    (rule,) = route["rules"]
    assert rule["backendRefs"] == [{"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}]
    assert route["parentRefs"] == [{"name": "public", "namespace": "web"}]


def test_your_own_store_leaves_no_server_behind(render: Render) -> None:
    for values in (VARIANTS["external-store"], VARIANTS["existing-secret"]):
        assert not [d for d in render(*values) if "valkey" in d["metadata"]["name"]]


@pytest.mark.parametrize(
    ("values", "fsync"),
    [
        ((), "always"),
        (("memoryStore.durability=relaxed",), "everysec"),
        (("memoryStore.durability=relaxed", "valkey.appendfsync=always"), "always"),
        (("memoryStore.durability=cache",), "everysec"),
    ],
)
def test_the_bundled_valkey_syncs_as_its_store_promises(render: Render, values: tuple[str, ...], fsync: str) -> None:
    (container,) = one(render(*values), "StatefulSet", "katsura-valkey")["spec"]["template"]["spec"]["containers"]
    arguments = container["args"]
    assert arguments[arguments.index("--appendfsync") + 1] == fsync
    assert arguments[arguments.index("--appendonly") + 1] == "yes"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["gateway.replcas=2"], "replcas"),
        (["gateway.replicas=0"], "replicas"),
        (["store.url=redis://r:6379"], "set valkey.enabled=false"),
        (["valkey.enabled=false"], "trees need a store"),
        ([f"store.tls.ca={PEM}"], "store.tls belongs to store.url"),
        (["store.tls.ca=/a/path"], "ca"),
        (["store.url=rediss://r", "valkey.enabled=false", f"store.tls.key={PEM}"], "belong together"),
        (["valkey.appendfsync=everysec"], "needs valkey.appendfsync=always"),
        (["valkey.persistence.enabled=false", "memoryStore.durability=relaxed"], "set memoryStore.durability=cache"),
        (["operator.enabled=false"], "operator.namespace"),
        (["gateway.ingress.enabled=true"], "gateway.ingress.host"),
        (["store.url=http://r", "valkey.enabled=false"], "url"),
        (["metrics.podMonitor.enabled=true"], "monitoring.coreos.com/v1"),
        (["metrics.prometheusRule.enabled=true"], "monitoring.coreos.com/v1"),
        (["gateway.httpRoute.enabled=true", "gateway.httpRoute.parentRefs[0].name=g"], "gateway.networking.k8s.io/v1"),
        (["certificates.certManager.enabled=true"], "cert-manager.io/v1"),
        (["gateway.httpRoute.parentRefs[0].nam=g"], "nam"),
        (["networkPolicy.gatewayFrom[0].podSelector.matchLabel.a=b"], "matchLabel"),
        (["networkPolicy.metricsFrom[0].ipBlock.cdir=10.0.0.0/8"], "cdir"),
    ],
)
def test_values_that_make_no_sense_are_refused_with_what_to_do(helm: Any, values: list[str], said: str) -> None:
    done = helm.run("template", "--kube-version", KUBERNETES, "--set", ",".join(values))
    assert done.returncode != 0
    assert said in done.stderr


def test_an_old_kubernetes_is_refused(helm: Any) -> None:
    done = helm.run("template", "--kube-version", "1.29.0")
    assert "kubeVersion" in done.stderr


def test_the_schema_knows_every_value_and_is_closed() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(value: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        assert schema["additionalProperties"] is False, path
        assert set(value) == set(schema["properties"]) - {"global"} - OPTIONAL, path
        for name, inner in value.items():
            if isinstance(inner, dict) and "properties" in schema["properties"][name]:
                compare(inner, schema["properties"][name], f"{path}.{name}")

    compare(values, schema, "")


OPTIONAL = {"claims"}


def test_the_schema_is_closed_in_its_depth() -> None:
    def open_below(node: Any, path: str) -> Iterator[str]:
        if isinstance(node, dict):
            extra = node.get("additionalProperties")
            if ("properties" in node or node.get("type") == "object") and (extra is None or extra is True):
                yield path
            for name, inner in node.items():
                yield from open_below(inner, f"{path}.{name}")

    schema = json.loads((CHART / "values.schema.json").read_text())
    assert list(open_below(schema, "")) == [".properties.global"]  # of whoever has this chart as a part


def test_both_majors_of_helm_render_the_same(every_helm: dict[str, Any]) -> None:
    if len(every_helm) < 2:
        pytest.skip("one Helm only; `make chart` fetches Helm 4")
    for values in VARIANTS.values():
        # Passwords are drawn at each rendering.
        made = [
            [d for d in helm.render(*values) if (d["kind"], d["metadata"]["name"]) != ("Secret", "katsura")]
            for helm in every_helm.values()
        ]
        assert all(documents == made[0] for documents in made)


def notes(helm: Any, folder: Path, *values: str) -> str:
    """What Helm prints after an installation: it does not render the file otherwise."""
    copy = folder / "katsura"
    shutil.copytree(CHART, copy)
    (copy / "templates" / "NOTES.txt").rename(copy / "NOTES.copy")
    (copy / "templates" / "notes.yaml").write_text(
        'kind: Notes\ntext: {{ tpl (.Files.Get "NOTES.copy") . | toJson }}\n'
    )
    (text,) = [d["text"] for d in replace(helm, chart=copy).render(*values) if d["kind"] == "Notes"]
    return str(text)


def test_the_notes_name_commands_that_exist(helm: Any, tmp_path: Path) -> None:
    text = notes(helm, tmp_path)
    (line,) = [line for line in text.splitlines() if "katsura key create" in line]
    build_parser({}).parse_args(shlex.split(line.split("'")[1])[1:])
    assert "helm test rel -n ns" in text
    assert "delete pvc data-katsura-valkey-0" in text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((), "port-forward svc/katsura-gateway 8080:80 &\n   curl -N http://127.0.0.1:8080/v1/"),
        (VARIANTS["ingress"], "3. Ask:\n\n   curl -N http://ai.example.org/v1/"),
        ((*VARIANTS["ingress"], "gateway.ingress.tlsSecret=t"), "curl -N https://ai.example.org/v1/"),
        (
            (*VARIANTS["http-route"], 'gateway.httpRoute.hostnames=["a.example.org"]'),
            "curl -N https://a.example.org/v1/",
        ),
    ],
)
def test_the_notes_ask_where_the_gateway_is_reached(
    helm: Any, tmp_path: Path, values: tuple[str, ...], said: str
) -> None:
    assert said in notes(helm, tmp_path, *values)
