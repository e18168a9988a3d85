"""Commands that change something: repair, migrate, and the real model once from end to end."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import rich
from psycopg.rows import TupleRow
from rich.console import Console

import sophia.embedding
from sophia import inbox
from sophia.catalog.models import EmbeddingModel
from sophia.database import Database
from sophia.documents import Change, Clock, canonical_key
from sophia.embedding import Embedder
from tests.integration.cli.conftest import Sophia

Connection = psycopg.Connection[TupleRow]
TEXTS = {
    1: ("Lighthouse", "A keeper tends the lamp that warns ships of the rocks."),
    2: ("Bread", "Sourdough rises slowly in a cold kitchen."),
    3: ("Ice", "Glaciers carve valleys over ten thousand years."),
}


@pytest.fixture
def taken(connection: Connection) -> None:
    """Three documents in the inbox, none of them indexed."""
    inbox.ensure_collection(connection, "documents", ["id"])
    changes = [
        Change(
            canonical_key([number]),
            "c",
            Clock(1, number, 0),
            {"id": number, "title": title, "body": body, "module": "m", "kind": "k"},
        )
        for number, (title, body) in TEXTS.items()
    ]
    with connection.transaction():
        inbox.accept(connection, "documents", changes)


@pytest.mark.usefixtures("taken", "embedder")
def test_repair_writes_what_is_missing_once(sophia_command: Sophia, connection: Connection) -> None:
    assert sophia_command("repair", "documents", "--json").json == {"documents": 3, "embedded": 3, "parked": 0}
    assert sophia_command("repair", "documents", "--json").json == {"documents": 0, "embedded": 0, "parked": 0}
    connection.execute("DELETE FROM indexes.documents_v1 WHERE key = '[2]'")
    assert sophia_command("repair", "documents", "--shallow", "--json").json["documents"] == 0
    assert sophia_command("repair", "documents", "--json").json["documents"] == 1
    shown = sophia_command("repair", "documents")
    assert "shard 16/16" in shown.out


@pytest.mark.usefixtures("taken", "embedder")
def test_repair_shows_its_pace_in_lines_where_there_is_no_terminal(sophia_command: Sophia) -> None:
    lines = sophia_command("repair", "documents").out.splitlines()
    # All shards are one batch.
    assert len(lines) == 2
    assert "shard 16/16, 3 documents written, 3 texts embedded; 100,000 tokens/s, padding 0.0%" in lines[0]
    assert lines[1] == "3 documents written, 3 texts embedded by hash"


@pytest.mark.usefixtures("taken", "embedder")
def test_repair_shows_a_bar_on_a_terminal(sophia_command: Sophia, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    # As in a process whose first output went elsewhere: what rich keeps of that decides nothing here.
    monkeypatch.setattr(rich, "_console", Console(force_terminal=False))
    shown = sophia_command("repair", "documents").out
    assert "3/3" in shown
    assert "100,000 tokens/s" in shown
    assert "shard" not in shown
    assert shown.splitlines()[-1].endswith("3 documents written, 3 texts embedded by hash")
    assert "\x1b" not in sophia_command("repair", "documents", "--json").out


@pytest.mark.usefixtures("taken", "embedder")
def test_a_terminal_that_cannot_redraw_gets_lines(sophia_command: Sophia, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "dumb")
    lines = sophia_command("repair", "documents").out.splitlines()
    assert len(lines) == 2
    assert "shard 16/16, 3 documents written" in lines[0]


@pytest.mark.usefixtures("embedder")
@pytest.mark.parametrize(
    ("index", "code", "message"), [("documnets", 1, "documnets"), ("conversation_search", 2, "plan-only here")]
)
def test_repair_of_what_is_not_here_says_why(sophia_command: Sophia, index: str, code: int, message: str) -> None:
    done = sophia_command("repair", index)
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err


def test_migrate_may_be_run_twice(sophia_command: Sophia) -> None:
    assert sophia_command("migrate").out.strip() == "up to date"


def test_migrate_builds_the_schema_of_an_empty_database(
    sophia_command: Sophia, database: Database, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{connection.info.dbname}_empty"
    connection.execute(f'CREATE DATABASE "{name}"')
    try:
        monkeypatch.setenv("SOPHIA_DATABASE_URL", database.url.replace(f"/{connection.info.dbname}", f"/{name}"))
        assert sophia_command("migrate").out.strip() == "migrated"
        assert sophia_command("migrate").out.strip() == "up to date"
    finally:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def real_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real model, loaded once for all commands."""
    loaded: dict[str, Embedder] = {}
    load = sophia.embedding.load_embedder

    def once(model: EmbeddingModel, *arguments: Any) -> Embedder:
        if model.name not in loaded:
            loaded[model.name] = load(model, *arguments)
        return loaded[model.name]

    monkeypatch.setattr(sophia.embedding, "load_embedder", once)


@pytest.mark.usefixtures("taken", "real_model")
def test_the_real_model_finds_what_is_meant(sophia_command: Sophia) -> None:
    assert sophia_command("repair", "documents", "--json").json["embedded"] == 3
    for query, number in (("baking at home", 2), ("valleys formed by ice", 3), ("safety at sea", 1)):
        hits = sophia_command("search", "documents", query, "-k", "1", "--json").json
        assert [hit["key"] for hit in hits] == [f"[{number}]"], query
    done = sophia_command("verify", "documents", "--json")
    assert done.json["holds"] is True
    assert "sampled cosine >= 1.0" in done.json["sentence"] or "sampled cosine >= 0.9999" in done.json["sentence"]
