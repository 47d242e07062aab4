from __future__ import annotations

from pathlib import Path

from katsura.text.digest import tokenizer_digest


def test_another_template_is_another_digest(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    without = tokenizer_digest(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert tokenizer_digest(tmp_path) != without
    assert len(without) == 64


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert tokenizer_digest(tmp_path) == ""
