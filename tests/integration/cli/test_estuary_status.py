"""`sophia estuary status`: Estuary's side beside ours, over a control plane on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia import doctor, inbox
from sophia.estuary.control import client
from tests.estuary_control.plane import TOKEN, Plane, Spec, plane
from tests.integration.cli.conftest import Sophia

CONVERSATIONS = "sophia/conversations"
CAPTURE = "sophia/app/source-postgres"
WEBHOOK = "sophia/webhook"


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile in which Estuary feeds collections; nothing else of it is reached."""
    monkeypatch.setenv("SOPHIA_PROFILE", "cluster")
    monkeypatch.setenv("SOPHIA_KUBE_CONTEXT", "none")
    monkeypatch.setenv("SOPHIA_WEAVIATE_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(client, "sleep", lambda _: None)


@pytest.fixture
def estuary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plane]:
    with plane() as running:
        monkeypatch.setenv("SOPHIA_ESTUARY__URL", running.url)
        monkeypatch.setenv("SOPHIA_ESTUARY__TOKEN", TOKEN)
        running.specs += [
            Spec(CAPTURE, "capture", summary="streaming [/wal] from slot"),
            Spec(CONVERSATIONS, "collection", written_by=(CAPTURE,), read_by=(WEBHOOK,)),
            Spec(WEBHOOK, "materialization", health="ERROR", summary="one or more task shards are failed"),
        ]
        running.binding(CAPTURE, CONVERSATIONS, "captured", 1200)
        running.binding(WEBHOOK, CONVERSATIONS, "materialized", 1100, 1795255200)
        running.sample("captured_last_published_at_time_seconds", 1795255212.5, task=CAPTURE, collection=CONVERSATIONS)
        yield running


@pytest.fixture
def watermark(connection: psycopg.Connection[TupleRow]) -> None:
    inbox.ensure_collection(connection, "conversations", ["id"])
    connection.execute(
        "INSERT INTO sophia.estuary_watermarks (collection, published_at_max) VALUES (%s, '2026-11-21T11:59:00Z')",
        [CONVERSATIONS],
    )


@pytest.mark.usefixtures("watermark")
def test_the_watermark_and_what_waits_stand_beside_our_own_position(
    sophia_command: Sophia, connection: psycopg.Connection[TupleRow]
) -> None:
    """Without asking Estuary: the triggers have told the intake."""
    collection = inbox.ensure_collection(connection, "conversations", ["id"])
    inbox.ensure_collection(connection, "documents", ["id"])
    connection.execute(
        "INSERT INTO sophia.rereads (collection_id, key, clock, reason) VALUES (%s, '[1]', '{1,1,0}', 'moved')",
        [collection],
    )
    connection.execute(
        "INSERT INTO sophia.parked (collection_id, name, documents, digest, reason, body) "
        "VALUES (%s, %s, 1, '', 'a test', '')",
        [collection, CONVERSATIONS],
    )
    found = {each["name"]: each for each in sophia_command("status", "--json").json["collections"]}
    conversations = found["conversations"]
    assert (conversations["watermark"], conversations["position"]) == ("2026-11-21T11:59:00+00:00", 0)
    assert (conversations["rereads"], conversations["parked"], conversations["dead_letters"]) == (1, 1, 1)
    assert "watermark" not in found["documents"]
    shown = sophia_command("status").out
    for words in ("complete up to", "to read again", "2026-11-21 11:59:00+00:00"):
        assert words in shown


@pytest.mark.usefixtures("watermark")
def test_both_sides_are_shown(sophia_command: Sophia, estuary: Plane) -> None:
    estuary.fire("shard_failed", WEBHOOK, "webhook failed after many attempts: [503] unavailable")
    found = sophia_command("estuary", "status", "--json").json
    assert (found["prefix"], found["complete"]) == ("sophia/", True)
    assert {task["name"]: task["health"] for task in found["tasks"]} == {CAPTURE: "OK", WEBHOOK: "ERROR"}
    collections = {collection["name"]: collection for collection in found["collections"]}
    assert set(collections) == {"conversations", "realtime_data", "vector_updates"}
    conversations = collections["conversations"]
    assert (conversations["written_docs"], conversations["delivered_docs"]) == (1200, 1100)
    assert (conversations["lag_seconds"], conversations["alerts"]) == (12.5, 1)
    assert (conversations["watermark"], conversations["position"]) == ("2026-11-21T11:59:00+00:00", 0)
    (alert,) = found["alerts"]
    assert (alert["type"], alert["name"]) == ("shard_failed", WEBHOOK)
    shown = sophia_command("estuary", "status")
    assert shown.code == 0
    # Brackets in Estuary's texts are text.
    for words in ("streaming [/wal] from slot", "[503] unavailable", "12.5 s", "2026-11-21T11:59:00+00:00", "error"):
        assert words in shown.out


def test_without_alerts_it_says_so(sophia_command: Sophia, estuary: Plane) -> None:
    assert "no alert fires" in sophia_command("estuary", "status").out


@pytest.mark.usefixtures("watermark")
def test_without_a_token_our_own_side_is_shown(sophia_command: Sophia) -> None:
    shown = sophia_command("estuary", "status")
    assert shown.code == 0
    assert "2026-11-21T11:59:00+00:00" in shown.out
    assert "SOPHIA_ESTUARY__TOKEN is not set" in shown.err
    found = sophia_command("estuary", "status", "--json").json
    assert [c["name"] for c in found["collections"] if c["watermark"]] == ["conversations"]


def test_where_estuary_feeds_nothing_it_says_so(sophia_command: Sophia, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOPHIA_PROFILE", "local")
    assert "no collection comes from Estuary in profile local" in sophia_command("estuary", "status").out


def test_named_tasks_are_shown_as_their_controllers_see_them(sophia_command: Sophia, estuary: Plane) -> None:
    (webhook,) = sophia_command("estuary", "status", WEBHOOK, "--json").json
    assert (webhook["health"], webhook["failures"]) == ("error", 3)
    assert "one or more task shards are failed" in sophia_command("estuary", "status", WEBHOOK, CAPTURE).out
    missing = sophia_command("estuary", "status", "sophia/nope")
    assert (missing.code, "not published" in missing.err) == (2, True)


def test_a_refused_token_is_for_a_person_and_an_outage_is_not(
    sophia_command: Sophia, estuary: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOPHIA_ESTUARY__TOKEN", "hunter2")
    refused = sophia_command("estuary", "status")
    assert refused.code == 2
    assert "set SOPHIA_ESTUARY__TOKEN" in refused.err
    assert "hunter2" not in refused.err
    estuary.close()
    assert sophia_command("estuary", "status").code == 3


def test_the_doctor_says_whether_estuary_is_observed(
    sophia_command: Sophia, estuary: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What it looks at beside Estuary takes its time.
    for other in ("_database", "_snowflake", "_models", "_systems"):
        monkeypatch.setattr(doctor, other, lambda *_: iter(()))

    def finding() -> tuple[str, str]:
        found = {f["what"]: f for f in sophia_command("doctor", "--json").json}
        return found["Estuary"]["state"], found["Estuary"]["fix"]

    assert finding() == ("ok", "")
    estuary.fire("shard_failed", WEBHOOK, "x")
    assert finding() == ("warn", "`sophia estuary status`")
    monkeypatch.delenv("SOPHIA_ESTUARY__TOKEN")
    assert finding() == ("warn", "set SOPHIA_ESTUARY__TOKEN to a token that may read sophia/")
