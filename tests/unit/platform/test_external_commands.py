"""The docker and hadolint commands, played by scripts: present, absent, refusing, missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from sophia.platform import SystemUnreachableError
from sophia.platform.docker_engine import DockerCommand
from sophia.platform.dockerfile import hadolint


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def script(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_labels_of_an_image(command: Path) -> None:
    script(command, "docker", """[ "$2" = "tcp://engine.example.com:2375" ] && echo '{"a": "b"}'""")
    assert DockerCommand("tcp://engine.example.com:2375").image_labels("redis:7") == {"a": "b"}


def test_image_without_labels(command: Path) -> None:
    script(command, "docker", "echo null")
    assert DockerCommand("unix:///run/docker.sock").image_labels("redis:7") == {}


def test_absent_image(command: Path) -> None:
    script(command, "docker", "echo 'Error: No such image: redis:7' >&2; exit 1")
    assert DockerCommand("unix:///run/docker.sock").image_labels("redis:7") is None


def test_engine_that_refuses(command: Path) -> None:
    script(command, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    with pytest.raises(SystemUnreachableError, match="Cannot connect"):
        DockerCommand("unix:///run/docker.sock").image_labels("redis:7")


def test_no_docker_command(command: Path) -> None:
    with pytest.raises(SystemUnreachableError, match="not installed"):
        DockerCommand("unix:///run/docker.sock").image_labels("redis:7")


def test_hadolint_that_is_not_installed_is_said(command: Path) -> None:
    (finding,) = hadolint("Dockerfile", "FROM a:1\n")
    assert (finding.severity, finding.rule) == ("info", "not-scanned")


def test_hadolint_findings(command: Path) -> None:
    result = '[{"level": "warning", "code": "DL3006", "line": 1, "message": "tag it"}]'
    script(command, "hadolint", f"echo '{result}'")
    (finding,) = hadolint("Dockerfile", "FROM a\n")
    assert (finding.severity, finding.rule, finding.where) == ("warning", "DL3006", "Dockerfile:1")


@pytest.mark.parametrize("body", ["exit 1", "echo no json"])
def test_hadolint_that_fails_is_no_clean_bill(command: Path, body: str) -> None:
    script(command, "hadolint", body)
    (finding,) = hadolint("Dockerfile", "FROM a:1\n")
    assert (finding.severity, finding.rule) == ("warning", "not-scanned")
