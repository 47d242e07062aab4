"""Devices as data with source and date, and how a node's labels name one. Unknown stays unknown: never a guess.

`devices.json` holds data sheets, prices and labels; a cluster's AcceleratorProfiles override them. `cost` reads rates,
`manifests.problem` identifies nodes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Final

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.units import GIB

_SHARED: Final = ("-SHARED", "-MIG-", "MIG-")


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of accelerator, or one core of a kind of CPU. Rates are dense and per device; links one direction.

    Attributes:
        teraflops: by arithmetic (`bf16`, `fp8`, `fp4`, `f32`); a missing narrow one runs as the next wider.
        memory_gib: as reported; `usable` of it minus `reserved_gib` is ours. 0 for a core: its node's RAM is.
        intra_gb_s, inter_gb_s: link to a peer of its node or rack, and beyond it.
        hourly_usd, spot_usd: typical price; hourly_range: lowest and highest seen.
        labels: (label, value) pairs that name it on a node; pci: `vendor_device` as NFD writes it.
        resource: the extended resource that counts it.
        source, date: where the figures are from.
    """

    name: str
    kind: str
    vendor: str
    teraflops: Mapping[str, float]
    memory_gib: float
    memory_gb_s: float
    intra_gb_s: float
    inter_gb_s: float
    watts: float
    idle_watts: float
    hourly_usd: float | None
    spot_usd: float | None
    hourly_range: tuple[float, float] | None
    resource: str
    labels: tuple[tuple[str, str], ...]
    pci: tuple[str, ...]
    source: str
    date: str
    usable: float = 0.92
    reserved_gib: float = 2.0

    @property
    def is_cpu(self) -> bool:
        """Whether one device is one core."""
        return self.kind == "cpu"

    def flops(self, arithmetic: str) -> float:
        """FLOP/s in `arithmetic`, or in the next wider one that it has."""
        order = ("fp4", "fp8", "bf16", "f32")
        for name in order[order.index(arithmetic) :]:
            if name in self.teraflops:
                return self.teraflops[name] * 1e12
        return max(self.teraflops.values()) * 1e12

    @property
    def memory_bytes_s(self) -> float:
        """Memory bandwidth in bytes/s."""
        return self.memory_gb_s * 1e9

    @property
    def intra_bytes_s(self) -> float:
        """Link to a peer of the same node or rack, bytes/s one direction."""
        return self.intra_gb_s * 1e9

    @property
    def inter_bytes_s(self) -> float:
        """Link beyond it, bytes/s one direction."""
        return self.inter_gb_s * 1e9

    @property
    def usable_bytes(self) -> float:
        """Memory for weights and KV."""
        return (self.memory_gib * self.usable - self.reserved_gib) * GIB


@dataclass(frozen=True, slots=True)
class Found:
    """What a node's accelerators are: `device` is None where nobody knows, and `why` says how it was told."""

    device: Device | None
    count: int
    why: str


class Catalogue:
    """Devices by name, and by what nodes say about themselves."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self.devices: Mapping[str, Device] = {d.name: d for d in devices}
        self._labels = {pair: d for d in devices for pair in d.labels}
        self._pci = {pci: d for d in devices for pci in d.pci}
        self.resources = tuple(dict.fromkeys(d.resource for d in devices if d.resource))

    def with_device(self, device: Device) -> Catalogue:
        """This catalogue with `device` in place of the one of its name."""
        return Catalogue([*(d for d in self.devices.values() if d.name != device.name), device])

    def spelled(self, name: str) -> str:
        """`name` as the catalogue spells it; as it is where the catalogue lacks it."""
        return next((known for known in self.devices if known.lower() == name.lower()), name)

    def named(self, name: str) -> Device:
        """The device called `name`.

        Raises:
            InvalidArgumentError: there is none.
        """
        if name not in self.devices:
            known = ", ".join(self.devices)
            raise InvalidArgumentError(f"no device {name!r} in the catalogue; known: {known}", field="device")
        return self.devices[name]

    def identify(
        self, labels: Mapping[str, str], allocatable: Mapping[str, int], products: Sequence[str] = ()
    ) -> Found | None:
        """What accelerators a node has: DRA product names, then vendor labels, then NFD's PCI labels; None without any.

        Args:
            labels: of the node. allocatable: its countable resources. products: `productName` of its DRA devices.
        """
        resource = next((r for r in self.resources if allocatable.get(r)), None)
        count = allocatable.get(resource, 0) if resource else len(products)
        if not count:
            return None
        shared = [v for k, v in labels.items() if "gpu.product" in k and any(mark in v for mark in _SHARED)]
        if shared:
            return Found(None, count, f"{shared[0]!r} is a shared or partitioned device, not a whole one")
        for product in products[:1]:
            for (_, value), device in self._labels.items():
                if value.replace("-", " ").lower() == product.replace("-", " ").lower():
                    return Found(device, count, f"DRA productName={product}")
        for pair in labels.items():
            if pair in self._labels:
                return Found(self._labels[pair], count, f"{pair[0]}={pair[1]}")
        for key in labels:
            if key.startswith("feature.node.kubernetes.io/pci-") and key.endswith(".present"):
                pci = key.removeprefix("feature.node.kubernetes.io/pci-").removesuffix(".present")
                named = self._pci.get("_".join(pci.split("_")[-2:]))
                if named:
                    return Found(named, count, key)
        keys = {key for key, _ in self._labels}
        strange = [f"{key}={value}" for key, value in labels.items() if key in keys and "gpu" in key]
        said = f"DRA productName={products[0]}" if products else strange[0] if strange else None
        why = f"the catalogue has no {said}" if said else "no label says which product"
        return Found(None, count, f"{count} x {resource or 'DRA device'}, but {why}: an AcceleratorProfile may name it")

    def cpu(self, labels: Mapping[str, str]) -> Device:
        """The kind of core that a node's labels name; the plainest where they do not."""
        for pair in labels.items():
            device = self._labels.get(pair)
            if device is not None and device.is_cpu:
                return device
        return self.named("cpu")


def cores_of(core: Device, count: int, ram_bytes: float) -> Device:
    """`count` cores of a node with `ram_bytes` as one device: rates add up, memory is the node's."""
    return replace(
        core,
        teraflops={name: rate * count for name, rate in core.teraflops.items()},
        memory_gb_s=core.memory_gb_s * count,
        memory_gib=ram_bytes / GIB,
        reserved_gib=0.5,
        watts=core.watts * count,
    )


def read_catalogue(text: str) -> Catalogue:
    """A catalogue from the JSON of `devices.json`."""
    data = json.loads(text)
    return Catalogue([_device(entry, data["date"]) for entry in data["devices"]])


def _device(entry: Mapping[str, Any], date: str) -> Device:
    known = dict(entry)
    price = known.pop("hourly_range", None)
    return Device(
        **{
            "vendor": "",
            "intra_gb_s": 0.0,
            "idle_watts": known.get("watts", 0) * 0.15,
            "hourly_usd": None,
            "spot_usd": None,
            "resource": "",
            "date": date,
            **known,
            "hourly_range": tuple(price) if price else None,
            "labels": tuple((k, v) for k, v in known.get("labels", ())),
            "pci": tuple(known.get("pci", ())),
        }
    )


@cache
def built_in() -> Catalogue:
    """The catalogue that ships with the package."""
    return read_catalogue(resources.files(__package__).joinpath("devices.json").read_text())
