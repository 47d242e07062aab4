"""The kernel plan of a revision, made once and kept beside the weights that it is for.

Two kernels differ in the last bits, so shard and members of one revision must read the same plan, whichever of them
starts first. The first to finish its self-test puts the plan in place, the others take what is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.shape import DType, FfnLayout, ModelShape, Numerics
from katsura.model.calibrate import CALIBRATION, plan_kernels
from katsura.model.kernels import KernelPlan
from katsura.native import library as native


def kernel_plan(
    folder: Path,
    shape: ModelShape,
    layout: FfnLayout,
    dtype: DType,
    numerics: Numerics,
    *,
    now: Callable[[], float],
    fixed: Path | None = None,
) -> KernelPlan:
    """The plan of this revision on this kind of machine; a first call takes seconds, later ones read a file.

    A folder that ships a plan of this promise (`ship_plan`) has it read on every kind of machine.

    Args:
        folder: the model folder, where the plan is kept.
        shape: of the model; layout: how its FFN is cut.
        dtype: of weights, activations and KV; numerics: what the plan promises.
        now: a clock in seconds, to choose among kernels that keep the promise.
        fixed: a plan that the deployment ships (machines that differ must share one); read instead.

    Raises:
        InvalidArgumentError: `fixed` is no kernel plan.
        OSError: the folder cannot be written.
    """
    if fixed is not None:
        return _read(fixed)
    shipped = folder / _shipped_name(shape, layout, dtype, numerics)
    if shipped.is_file():
        return _read(shipped)
    path = folder / f"kernels-{_key(shape, layout, dtype, numerics)}.json"
    if not path.is_file():
        plan = plan_kernels(shape, layout, dtype, numerics, now)
        partial = folder / f".{path.name}.{os.getpid()}"
        partial.write_text(json.dumps(plan.to_json(), indent=1))
        try:
            os.link(partial, path)  # unlike a rename, it never replaces the plan of a process that was faster
        except FileExistsError:
            pass
        finally:
            partial.unlink()
    return _read(path)


def ship_plan(
    folder: Path, shape: ModelShape, layout: FfnLayout, dtype: DType, numerics: Numerics, *, now: Callable[[], float]
) -> Path:
    """Make this machine's plan the one of every process that reads `folder`: for folders that none of them can write.

    Raises:
        OSError: the folder cannot be written.
    """
    path = folder / _shipped_name(shape, layout, dtype, numerics)
    path.write_text(json.dumps(plan_kernels(shape, layout, dtype, numerics, now).to_json(), indent=1))
    return path


def _read(path: Path) -> KernelPlan:
    try:
        return KernelPlan.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"{path} is no kernel plan ({error}); remove it to make a new one") from error


def _shipped_name(shape: ModelShape, layout: FfnLayout, dtype: DType, numerics: Numerics) -> str:
    return f"kernels-shipped-{_digest(_promise(shape, layout, dtype, numerics))}.json"


def _promise(shape: ModelShape, layout: FfnLayout, dtype: DType, numerics: Numerics) -> list[str]:
    return [str(CALIBRATION), repr(shape), repr(layout), dtype.value, numerics.value]


def _key(shape: ModelShape, layout: FfnLayout, dtype: DType, numerics: Numerics) -> str:
    # What a plan depends on: the products' shapes, the promise, and what this torch can do on this CPU.
    facts = _promise(shape, layout, dtype, numerics)
    facts += [torch.__version__, torch.backends.cpu.get_cpu_capability(), platform.machine()]
    facts.append(f"native {native.available()}")
    return _digest(facts)


def _digest(facts: list[str]) -> str:
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
