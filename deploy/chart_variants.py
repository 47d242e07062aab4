"""What people make of the chart: every variation that its page names. Tests and `make chart` go through all of them."""

from __future__ import annotations

OTHERS = ("monitoring.coreos.com/v1", "gateway.networking.k8s.io/v1", "cert-manager.io/v1")
"""Definitions that a cluster may have and options of the chart need."""
PEM = "-----BEGIN CERTIFICATE-----"
VARIANTS: dict[str, tuple[str, ...]] = {
    "default": (),
    "ha": ("gateway.replicas=3", "operator.replicas=2", "memoryStore.replicas=2", "demo.attentionReplicas=2"),
    "relaxed": ("memoryStore.durability=relaxed",),
    "forgetful": ("memoryStore.durability=cache", "valkey.persistence.enabled=false"),
    "external-store": ("store.url=rediss://user:pw@redis.example.org:6380/1", "valkey.enabled=false"),
    "private-authority": (
        "store.url=rediss://user:pw@redis.example.org:6380/1",
        "valkey.enabled=false",
        f"store.tls.ca={PEM}",
        f"store.tls.certificate={PEM}",
        f"store.tls.key={PEM}",
    ),
    "existing-secret": ("store.existingSecret=mine", "valkey.enabled=false"),
    "served-from-elsewhere": ("operator.enabled=false", "operator.namespace=platform"),
    "two-namespaces": ('operator.namespaces=["ns","team"]',),
    "whole-cluster": ('operator.namespaces=["*"]', "operator.inventory=nodes", "operator.aggregateRoles=true"),
    "calibrated": ("operator.calibration=measured", "operator.profiles=true"),
    "openshift": ("podSecurity.runAsUser=null", "podSecurity.fsGroup=null"),
    "no-demo": ("demo.enabled=false",),
    "own-data": (
        "memoryStore.deletionPolicy=Delete",
        "memoryStore.archive.pvc=cold-trees",
        "memoryStore.archive.afterSeconds=86400",
    ),
    "open-network": ("networkPolicy.enabled=false",),
    "ingress": ("gateway.ingress.enabled=true", "gateway.ingress.host=ai.example.org", "gateway.service.port=8080"),
    "http-route": (
        "gateway.httpRoute.enabled=true",
        'gateway.httpRoute.parentRefs=[{"name":"public","namespace":"web"}]',
    ),
    "cert-manager": ("certificates.certManager.enabled=true",),
    "cert-manager-of-yours": (
        "certificates.certManager.enabled=true",
        "certificates.certManager.issuerRef.name=company",
        "certificates.certManager.issuerRef.kind=ClusterIssuer",
    ),
    "monitored": (
        "metrics.podMonitor.enabled=true",
        "metrics.prometheusRule.enabled=true",
        "metrics.dashboards.enabled=true",
    ),
    "traced": ("tracing.endpoint=http://collector.monitoring:4317", "tracing.share=0.5"),
    "pinned": (f"image.services.digest=sha256:{'a' * 64}", "image.registry=registry.example.org/"),
}
"""Name to values, as for `--set`; lists are JSON."""


def arguments(values: tuple[str, ...]) -> list[str]:
    """For Helm."""
    made = [part for value in values for part in ("--set-json" if "=[" in value else "--set", value)]
    return [*made, *(part for version in OTHERS for part in ("--api-versions", version))]
