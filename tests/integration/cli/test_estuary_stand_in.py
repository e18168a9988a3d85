"""`sophia estuary send` and `sophia estuary sweep`, from their arguments to what the receiver and the inbox have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia import inbox
from sophia.catalog import default_path
from sophia.database import Database
from sophia.documents import Change, Clock, canonical_key
from sophia.estuary.stand_in import webhook
from tests.estuary.recorder import Recorder
from tests.integration.cli.conftest import Sophia

Connection = psycopg.Connection[TupleRow]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """A receiver that answers 200 unless told otherwise."""
    recorder = Recorder()
    yield recorder
    recorder.close()


def test_a_table_is_sent(
    sophia_command: Sophia, connection: Connection, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.execute("CREATE TABLE documents (id int PRIMARY KEY, title text)")
    connection.execute("INSERT INTO documents VALUES (2, 'b'), (1, 'a'), (10, 'c')")
    monkeypatch.setenv("STAND_IN", "secret")
    done = sophia_command("estuary", "send", "documents", "--url", f"{recorder.url}estuary/", "--token-env", "STAND_IN")
    assert done.code == 0, done.err
    assert "3 documents of sophia/documents in 1 requests (1 attempts, 0 restarts, 1 transactions)" in done.out
    (request,) = recorder.requests
    assert request.path == "/estuary/sophia/documents"
    assert dict(request.headers)["Authorization"] == "Bearer secret"
    assert [document["id"] for document in request.documents] == [1, 2, 10]
    assert "secret" not in done.out + done.err


def test_a_file_is_sent_under_faults_and_counted(sophia_command: Sophia, recorder: Recorder, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"id": number, "text": "x" * 200_000}) + "\n" for number in range(20)))
    arguments = (
        "estuary",
        "send",
        "vector_updates",
        "--file",
        str(file),
        "--url",
        recorder.url,
        "--seed",
        "3",
        "--json",
    )
    done = sophia_command(*arguments, "--duplicate", "1", "--restart", "0.3")
    assert done.code == 0, done.err
    assert done.json["faults"]["duplicate"] == done.json["requests"] + done.json["faults"]["restart"]
    assert done.json["restarts"] == done.json["faults"]["restart"] > 0
    assert {document["id"] for document in recorder.documents} == set(range(20))
    assert "Authorization" not in dict(recorder.requests[0].headers)


def test_a_receiver_that_refuses_is_told_of(
    sophia_command: Sophia, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "DELAYS", (0.0, 0.0, 0.0))
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": 1}')
    recorder.answer = lambda number, request: 401
    done = sophia_command("estuary", "send", "vector_updates", "--file", str(file), "--url", recorder.url)
    assert done.code == 3
    assert "status 401; see what /sophia/vector_updates answers" in done.err
    assert len(recorder.requests) == 3


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("nothing",), "nothing"),
        (("vector_updates",), "names no table; give --table or --file"),
        (("documents", "--file", "x.jsonl", "--follow"), "--file stands alone"),
        (("documents", "--url", "http://127.0.0.1:1/estuary"), "ends in `/`"),
        (("documents",), "does not exist in the source"),
    ],
)
def test_what_cannot_be_sent_is_said(sophia_command: Sophia, arguments: tuple[str, ...], fault: str) -> None:
    done = sophia_command("estuary", "send", *arguments)
    assert done.code in (1, 2)
    assert fault in done.err


def test_orphans_are_swept(
    sophia_command: Sophia,
    connection: Connection,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "catalog"
    shutil.copytree(default_path(), folder)
    for name, old, new in (
        ("collections.yaml", "source: {local: sample, cluster: estuary}", "source: {local: estuary, cluster: estuary}"),
        ("sources.yaml", "kind: estuary", "kind: estuary\n    url_env: SOPHIA_ESTUARY_SOURCE_URL"),
    ):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
    monkeypatch.setenv("SOPHIA_CATALOG", str(folder))
    connection.execute("CREATE TABLE conversations (id int PRIMARY KEY, content text)")
    connection.execute("INSERT INTO conversations VALUES (1, 'there')")
    inbox.ensure_collection(connection, "conversations", ["id"])
    for number in (1, 2):
        row = {"id": number, "content": "there"}
        change = Change(canonical_key([number]), "c", Clock(1, 1_000 + number, 0), row)
        inbox.accept(connection, "conversations", [change])

    refused = sophia_command("estuary", "sweep", "conversations")
    assert refused.code == 2
    assert "SOPHIA_ESTUARY_SOURCE_URL is not set" in refused.err
    monkeypatch.setenv("SOPHIA_ESTUARY_SOURCE_URL", database.url)
    tried = sophia_command("estuary", "sweep", "conversations", "--dry-run")
    assert "2 documents verified against the source: 1 would be deleted, 0 would be taken anew, 1 left" in tried.out
    done = sophia_command("estuary", "sweep", "conversations", "--before", "2026-01-01T00:00:00", "--json")
    assert done.code == 0, done.err
    assert (done.json["looked_at"], done.json["deleted"], done.json["left"]) == (2, 1, 1)
    assert connection.execute("SELECT key FROM sophia.documents WHERE NOT deleted").fetchall() == [("[1]",)]

    # Another key: whoever would look for rows by it is refused, and a person begins anew.
    text = (folder / "collections.yaml").read_text()
    assert text.count("estuary: sophia/conversations\n    key: [id]") == 1
    (folder / "collections.yaml").write_text(
        text.replace("sophia/conversations\n    key: [id]", "sophia/conversations\n    key: [user_id, id]")
    )
    refused = sophia_command("estuary", "sweep", "conversations")
    assert refused.code == 2
    assert "`sophia estuary rekey conversations`" in refused.err
    tried = sophia_command("estuary", "rekey", "conversations")
    assert tried.code == 1
    assert "key (id) becomes (user_id, id); 1 documents would be given up" in tried.out
    assert connection.execute("SELECT key FROM sophia.documents WHERE NOT deleted").fetchall() == [("[1]",)]
    done = sophia_command("estuary", "rekey", "conversations", "--yes")
    assert done.code == 0, done.err
    assert "--backfill conversations" in done.out
    assert connection.execute("SELECT key FROM sophia.documents WHERE NOT deleted").fetchall() == []
