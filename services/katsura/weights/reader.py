"""Safetensors folders read by slice: only the bytes asked for are touched, and what was read is written down."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from katsura.domain.errors import DataLossError, InvalidArgumentError, NotFoundError, Reason
from katsura.model.families.tensors import TensorSlice

_INDEX = "model.safetensors.index.json"
_SERVED = (torch.float32, torch.bfloat16, torch.float16)
_EXPERT = re.compile(
    r"(?P<layer>model\.layers\.\d+)\.block_sparse_moe\.experts\.(?P<expert>\d+)\.w(?P<part>[123])\.weight"
)
_GATE = re.compile(r"(?P<layer>model\.layers\.\d+)\.block_sparse_moe\.gate\.weight")


class Checkpoint:
    """A model folder, open for reading: one `model.safetensors`, or several with an index.

    It is a `katsura.model.weights.Reader`: call it with a `TensorSlice`. Leave the block to close the files; tensors
    stay valid.

    Attributes:
        folder: where it lies.
        bytes_read: tensor name to bytes that were asked for.
    """

    def __init__(self, folder: Path) -> None:
        """Open the folder.

        Raises:
            NotFoundError: no safetensors files, or one that the index names is missing (`WEIGHTS_UNAVAILABLE`).
            InvalidArgumentError: the weights are pickled.
            DataLossError: a file's header is damaged or the file is cut short.
        """
        self.folder = folder
        self.bytes_read: dict[str, int] = {}
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        with ExitStack() as opened:
            for name in _file_names(folder):
                file = opened.enter_context(_opened(folder / name))
                self._files |= dict.fromkeys(file.keys(), file)
            self._stack = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def names(self) -> list[str]:
        """Names of all tensors of the checkpoint."""
        return sorted(self._files)

    def __call__(self, piece: TensorSlice) -> Tensor:
        """The tensor, or the part of it, that `piece` names: of exactly `piece.shape`, in the dtype on disk.

        Raises:
            DataLossError: it is not there, or of another shape or type than the configuration says.
        """
        name, index = self._found(piece)
        try:
            stored = self._files[name].get_slice(name)
            tensor: Tensor = stored[index] if index else stored[:]
        except (SafetensorError, IndexError) as error:
            raise DataLossError(f"{self.folder}: {name} cannot be read ({error})") from error
        if tuple(tensor.shape) != piece.shape or tensor.dtype not in _SERVED:
            raise DataLossError(
                f"{self.folder}: {name} gives {tensor.dtype} {tuple(tensor.shape)} where config.json says "
                f"{piece.shape}; the weights and the configuration do not belong together"
            )
        self.bytes_read[name] = self.bytes_read.get(name, 0) + tensor.nbytes
        return tensor

    def _found(self, piece: TensorSlice) -> tuple[str, tuple[int | slice, ...]]:
        """Name on disk and index into it; Mixtral experts may be stored one by one or fused, as in memory."""
        rows, cols = (slice(*span) if span else slice(None) for span in (piece.rows, piece.cols))
        index = () if piece.rows is None and piece.cols is None else (rows, cols)
        if piece.name in self._files:
            return piece.name, index
        if (match := _GATE.fullmatch(piece.name)) and (name := f"{match['layer']}.mlp.gate.weight") in self._files:
            return name, index
        if match := _EXPERT.fullmatch(piece.name):
            expert, width = int(match["expert"]), piece.shape[0]
            fused = "down_proj" if match["part"] == "2" else "gate_up_proj"
            within = {"1": slice(0, width), "3": slice(width, 2 * width), "2": slice(None)}[match["part"]]
            for block in ("mlp", "block_sparse_moe"):
                if (name := f"{match['layer']}.{block}.experts.{fused}") in self._files:
                    return name, (expert, within, slice(None))
        raise DataLossError(f"{self.folder}: the checkpoint lacks {piece.name}; fetch the model again")


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise NotFoundError(
            f"{path} is missing, though the index names it; fetch the model again", reason=Reason.WEIGHTS_UNAVAILABLE
        ) from None
    except SafetensorError as error:
        raise DataLossError(f"{path} is damaged or cut short ({error}); fetch the model again") from error


def _file_names(folder: Path) -> list[str]:
    index = folder / _INDEX
    if index.is_file():
        return _indexed_names(index)
    if names := sorted(path.name for path in folder.glob("*.safetensors")):
        return names
    if pickled := sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind)):
        raise InvalidArgumentError(
            f"{folder} holds pickled weights ({pickled[0]}), which can run code when they are opened and are never "
            "read; convert them to safetensors first",
            field="source",
        )
    raise NotFoundError(f"{folder} holds no *.safetensors files", reason=Reason.WEIGHTS_UNAVAILABLE)


def _indexed_names(index: Path) -> list[str]:
    try:
        table = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(table.values())) if isinstance(table, Mapping) else []
    except (ValueError, KeyError, TypeError) as error:
        raise DataLossError(f"{index} is not an index of safetensors files: {error!r}") from error
    strange = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if strange or not names:
        raise DataLossError(f"{index} names {strange or 'no files'}; only safetensors files beside it are read")
    return names
