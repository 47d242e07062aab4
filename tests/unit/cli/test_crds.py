from __future__ import annotations

from pathlib import Path

import pytest

from katsura.cli.crds import write_definitions
from katsura.domain.errors import InvalidArgumentError
from katsura.manifests.crds import files


def test_definitions_are_printed_as_documents_that_kubectl_takes(capsys: pytest.CaptureFixture[str]) -> None:
    write_definitions(None)
    printed = capsys.readouterr().out
    assert printed.count("---\n") == len(files())
    assert printed.count("kind: CustomResourceDefinition") == len(files())


def test_definitions_are_written_one_file_per_kind(tmp_path: Path) -> None:
    write_definitions(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"cannot write .*nowhere"):
        write_definitions(tmp_path / "nowhere")
