"""`katsura crds`: the custom resource definitions, to standard output or one file per kind."""

from __future__ import annotations

import sys
from pathlib import Path

from katsura.cli.exit import Exit
from katsura.domain.errors import InvalidArgumentError
from katsura.manifests.crds import files


def write_definitions(folder: Path | None) -> Exit:
    """Write every definition into `folder`; print them all where it is None.

    Raises:
        InvalidArgumentError: the folder cannot be written.
    """
    for name, text in files().items():
        if folder is None:
            sys.stdout.write(text)
            continue
        try:
            (folder / name).write_text(text, "utf-8")
        except OSError as error:
            raise InvalidArgumentError(f"cannot write {folder / name}: {error.strerror}", field="--out") from error
    return Exit.OK
