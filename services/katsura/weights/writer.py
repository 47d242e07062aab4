"""Safetensors files written tensor by tensor, so that a conversion never holds more than one of them.

    [8 bytes: N, little-endian][N bytes: JSON header, padded with spaces to 8][tensors, back to back]

Source: the format's description in the safetensors repository.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from katsura.domain.errors import InternalError


class F32Writer:
    """Writes `shapes` (name to shape, in file order) as one f32 safetensors file; leaving the block makes it durable.

    Attributes:
        tensor_bytes: bytes of all tensors together.
        sha256: hex digest of the file, complete once the block is left.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._path = path
        self._pending = list(shapes.items())
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in shapes.items():
            begin, end = end, end + 4 * int(np.prod(shape, dtype=np.int64))
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
        self.tensor_bytes = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._header = len(text).to_bytes(8, "little") + text
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None

    @property
    def sha256(self) -> str:
        """Hex digest of what was written so far."""
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        self._put(self._header)
        return self

    def write(self, name: str, values: npt.NDArray[np.float32]) -> None:
        """Append the next tensor; names and shapes come in the order announced."""
        expected = self._pending.pop(0) if self._pending else None
        if (name, values.shape) != expected or values.dtype != np.float32:
            raise InternalError(f"wrote {name} {values.shape} {values.dtype} where f32 {expected} was announced")
        self._put(np.ascontiguousarray(values, dtype="<f4").reshape(-1).view(np.uint8).data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        with self._file:
            if error is None:
                if self._pending:
                    raise InternalError(f"{len(self._pending)} announced tensors were not written")
                self._file.flush()
                os.fsync(self._file.fileno())

    def _put(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        self._file.write(data)
        self._digest.update(data)
