"""Compiles our kernels (`services/katsura/native`) when Katsura is installed, where a C compiler is there.

Without one nothing fails: every process computes with torch's operators, about half as fast on a CPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SOURCES = Path("services", "katsura", "native")


class CompileKernels(BuildHookInterface[Any]):
    """`kernels.c` to `kernels.so` beside it: every instruction set that there are kernels for, chosen at run time."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the files of a wheel are collected, and before an editable install."""
        folder = Path(self.root) / _SOURCES
        library = folder / "kernels.so"
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None or not (folder / "kernels.c").is_file():
            print("no C compiler: Katsura will compute with torch's operators only", file=sys.stderr)
            return
        partial = library.with_suffix(f".{os.getpid()}")
        command = [compiler, "-O3", "-std=gnu11", "-shared", "-fPIC", "kernels.c", "-o", str(partial), "-lm"]
        if subprocess.run(command, cwd=folder, check=False).returncode:  # noqa: S603 - the compiler of whoever installs
            print("the kernels do not compile here: Katsura will compute with torch's operators only", file=sys.stderr)
            return
        partial.replace(library)
        build_data["artifacts"].append(str(_SOURCES / library.name))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
