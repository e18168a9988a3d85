"""Commands that run until they are stopped: what they refuse before anything is started."""

from __future__ import annotations

import socket

import pytest

from tests.integration.cli.conftest import Sophia


@pytest.mark.parametrize(
    ("command", "variable"),
    [
        ("console", "SOPHIA_CONSOLE__PORT"),
        ("indexer", "SOPHIA_INDEXER__METRICS_PORT"),
    ],
)
def test_a_port_in_use_ends_with_2_and_its_setting(
    sophia_command: Sophia, monkeypatch: pytest.MonkeyPatch, command: str, variable: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv(variable, str(taken.getsockname()[1]))
        done = sophia_command(command)
    assert done.code == 2
    assert variable in done.err
    assert "Traceback" not in done.err


def test_two_processes_that_want_one_port_are_named(sophia_command: Sophia, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    monkeypatch.setenv("SOPHIA_CONSOLE__PORT", port)
    monkeypatch.setenv("SOPHIA_CAPTURE__METRICS_PORT", port)
    done = sophia_command("up")
    assert done.code == 2
    assert f"port {port} is wanted by both SOPHIA_CONSOLE__PORT and SOPHIA_CAPTURE__METRICS_PORT" in done.err
