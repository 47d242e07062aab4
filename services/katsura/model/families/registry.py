"""Family name to tensor table: a new family is one module and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from katsura.model.families.llama import Llama
from katsura.model.families.mixtral import Mixtral
from katsura.model.families.tensors import Family

FAMILIES: Final[Mapping[str, Family]] = {"llama": Llama(), "mixtral": Mixtral()}
"""Keyed by `ModelShape.family`."""
