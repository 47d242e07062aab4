"""`katsura key --cluster`: what kubectl is asked to do. A real cluster sees it in `make demo-cluster`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from katsura.cli.main import run

KUBECTL = """#!/bin/sh
printf '%s\\n' "$*" >> "{log}"
[ "$*" != "${{*#*get namespace team-a}}" ] && echo '{{"metadata": {{"name": "team-a", "labels": {labels}}}}}' && exit 0
[ "$*" != "${{*#*get namespace}}" ] && echo 'namespaces "other" not found' >&2 && exit 1
exit {status}
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a kubectl that writes down what it is asked; returns what that was."""
    log = tmp_path / "log"
    log.touch()

    def make(labels: str = "{}", status: int = 0):
        path = tmp_path / "kubectl"
        path.write_text(KUBECTL.format(log=log, labels=labels, status=status))
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return lambda: log.read_text().splitlines()

    return make


@pytest.mark.parametrize(("labels", "tenant"), [("{}", "team-a"), ('{"katsura.dev/tenant": "acme"}', "acme")])
def test_a_key_of_a_namespace_is_of_the_tenant_that_its_label_names_or_of_its_name(kubectl, labels, tenant):
    asked = kubectl(labels)
    assert run(["key", "create", "--cluster", "ai", "--of-namespace", "team-a", "--name", "ci"], os.environ) == 0
    _, ran = asked()
    assert ran.startswith("-n ai exec deploy/katsura-gateway -- sh -c")
    assert ran.endswith(f"key create --tenant {tenant} --name ci")


def test_the_other_commands_run_there_too_and_their_status_is_ours(kubectl):
    asked = kubectl(status=2)
    assert run(["key", "list", "--cluster", "ai", "--json"], os.environ) == 2
    assert run(["key", "revoke", "--cluster", "ai", "key_1"], os.environ) == 2
    assert run(["key", "quota", "--cluster", "ai", "acme", "--trees", "5"], os.environ) == 2
    assert [line.partition('STORE_URL" sh ')[2] for line in asked()] == [
        "key list --tenant  --json", "key revoke key_1", "key quota acme --trees=5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cluster", "ai", "--of-namespace", "other"], "not found"),
        (["--of-namespace", "team-a"], "--cluster"),
        (["--cluster", "ai", "--tenant", "a", "--env"], "--env"),
    ],
)
def test_what_cannot_be_done_is_said(kubectl, capsys, words, said):
    kubectl()
    assert run(["key", "create", *words], os.environ) != 0
    assert said in capsys.readouterr().err


def test_without_kubectl_it_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["key", "list", "--cluster", "ai"], os.environ) == 1
    assert "install it" in capsys.readouterr().err
