"""`sophia estuary replay`: from journals on loopback to the inbox."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia.estuary.control import client
from sophia.estuary.journals import broker
from tests.estuary_control.answers import Answer
from tests.estuary_control.plane import TOKEN, Plane, plane
from tests.integration.cli.conftest import Sophia

NAME = "sophia/conversations"


@pytest.fixture
def estuary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plane]:
    """The profile in which Estuary feeds collections, and its control plane and brokers; nothing else is reached."""
    monkeypatch.setenv("SOPHIA_PROFILE", "cluster")
    monkeypatch.setenv("SOPHIA_KUBE_CONTEXT", "none")
    monkeypatch.setenv("SOPHIA_WEAVIATE_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(client, "sleep", lambda _: None)
    monkeypatch.setattr(broker, "sleep", lambda _: None)
    with plane() as running:
        monkeypatch.setenv("SOPHIA_ESTUARY__URL", running.url)
        monkeypatch.setenv("SOPHIA_ESTUARY__TOKEN", TOKEN)
        for pivot in ("00", "80"):
            base = int(pivot)
            running.data.journal(NAME, pivot).commit([base + 1, base + 2, base + 3])
        running.data.journal(NAME).put(50, id="open")
        yield running


def _keys(connection: psycopg.Connection[TupleRow]) -> list[str]:
    return [key for (key,) in connection.execute("SELECT key FROM sophia.documents ORDER BY key").fetchall()]


def test_a_collection_is_replayed_and_once_more_changes_nothing(
    sophia_command: Sophia, estuary: Plane, connection: psycopg.Connection[TupleRow]
) -> None:
    counted = sophia_command("estuary", "replay", "conversations", "--dry-run")
    assert counted.code == 0
    assert f"6 documents in 2 journals of {NAME}" in counted.out
    assert "nothing was taken" in counted.out
    assert _keys(connection) == []

    first = sophia_command("estuary", "replay", "conversations", "--json").json
    assert (first["documents"], first["changed"], first["open"], first["parked"]) == (6, 6, 1, 0)
    assert _keys(connection) == ["[1]", "[2]", "[3]", "[81]", "[82]", "[83]"]

    again = sophia_command("estuary", "replay", "conversations")
    assert "0 changes to the inbox, 0 parked" in again.out
    assert "left out: 1 not acknowledged yet" in again.out


def test_since_leaves_out_what_was_published_before(sophia_command: Sophia, estuary: Plane) -> None:
    found = sophia_command("estuary", "replay", "conversations", "--since", "2200-01-01", "--json").json
    assert (found["documents"], found["since"]) == (0, "2200-01-01T00:00:00")


def test_another_environment_is_read_where_it_is_observed(
    sophia_command: Sophia, estuary: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOPHIA_ESTUARY__PREFIX", "sophia/staging/")
    found = sophia_command("estuary", "replay", "conversations", "--json").json
    assert (found["estuary"], found["journals"]) == ("sophia/staging/conversations", 0)


def test_what_is_wrong_is_said_with_the_fix(
    sophia_command: Sophia, estuary: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    estuary.data.faults += [Answer(503)] * 99
    away = sophia_command("estuary", "replay", "conversations")
    assert (away.code, "it answers 503" in away.err) == (3, True)
    local = sophia_command("estuary", "replay", "documents")
    assert (local.code, "does not come from Estuary" in local.err) == (2, True)
    monkeypatch.delenv("SOPHIA_ESTUARY__TOKEN")
    unset = sophia_command("estuary", "replay", "conversations")
    assert (unset.code, "SOPHIA_ESTUARY__TOKEN is not set" in unset.err) == (2, True)
