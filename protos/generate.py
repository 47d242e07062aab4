"""Generate `services/katsura/api` and `docs/api` from these protos (`make protos`): committed, and never edited."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from grpc_tools import protoc
from reference import write_reference

PROTOS = Path(__file__).resolve().parent
CHARTER = '"""Generated from protos/ by `make protos`; never edit."""\n'


def generate(target: Path) -> None:
    """Write the package `katsura.api` below `target` (the folder that holds `katsura`)."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    include = Path(protoc.__file__).parent / "_proto"
    args = ["protoc", f"-I{PROTOS}", f"-I{include}", f"--python_out={target}", f"--grpc_python_out={target}"]
    args += [f"--mypy_out=quiet:{target}", f"--mypy_grpc_out=quiet:{target}", *sources]
    bin_dir = Path(sys.executable).parent
    args[1:1] = [f"--plugin={name}={bin_dir / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    if protoc.main(args) != 0:
        raise SystemExit("protoc failed: see above")
    api = target / "katsura" / "api"
    for grpc_file in api.rglob("*_pb2_grpc.py"):
        service = grpc_file.name.replace("_pb2_grpc.py", ".proto")
        if "\nservice " not in next(PROTOS.rglob(service)).read_text():
            grpc_file.unlink()
            grpc_file.with_suffix(".pyi").unlink(missing_ok=True)
    for folder in [api, *(p for p in api.rglob("*") if p.is_dir() and p.name != "__pycache__")]:
        (folder / "__init__.py").write_text(CHARTER)


def main() -> None:
    """Replace the committed output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PROTOS.parent / "services", help="folder that holds `katsura`")
    parser.add_argument("--docs", type=Path, default=PROTOS.parent / "docs" / "api", help="folder of the reference")
    given = parser.parse_args()
    shutil.rmtree(given.out / "katsura" / "api", ignore_errors=True)
    (given.out / "katsura").mkdir(parents=True, exist_ok=True)
    generate(given.out)
    write_reference(given.docs)


if __name__ == "__main__":
    main()
