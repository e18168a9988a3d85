"""promote, rollback, retire, versions and erase: what they print, refuse and leave."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
import yaml
from psycopg.rows import TupleRow

from sophia.catalog.loader import default_path
from tests.console import Documents
from tests.integration.caches import RedisStand
from tests.integration.cli.conftest import Sophia

Connection = psycopg.Connection[TupleRow]


@pytest.fixture
def changed_template(
    documents: Documents, sophia_command: Sophia, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first version is whole, and the catalog asks for another template of the index."""
    assert sophia_command("repair", "documents").code == 0
    folder = tmp_path / "catalog"
    folder.mkdir()
    for path in default_path().glob("*.yaml"):
        (folder / path.name).write_text(path.read_text())
    file = folder / "indexes.yaml"
    content = yaml.safe_load(file.read_text())
    for index in content["indexes"]:
        if index["name"] == "documents":
            index["template"] = "{body}"
    file.write_text(yaml.safe_dump(content))
    monkeypatch.setenv("SOPHIA_CATALOG", str(folder))


@pytest.mark.usefixtures("changed_template", "hasty_gates")
def test_rule_a_version_is_built_promoted_rolled_back_and_retired(
    sophia_command: Sophia, connection: Connection
) -> None:
    early = sophia_command("promote", "documents")
    assert early.code == 1
    assert "run `sophia repair documents`" in early.err
    assert sophia_command("repair", "documents").code == 0
    done = sophia_command("promote", "documents")
    assert done.code == 0, done.out + done.err
    assert [line.split()[:2] for line in done.out.splitlines() if line.startswith("pass")] == [
        ["pass", f"{name}:"] for name in ("complete", "proven", "recall", "sample_queries")
    ]
    assert "v2 serves; v1 goes on being fed: `sophia rollback documents` goes back" in done.out
    assert "nothing to promote: v2 serves already" in sophia_command("promote", "documents").out
    states = {v["version"]: v["state"] for v in sophia_command("versions", "documents", "--json").json}
    assert states == {1: "retiring", 2: "serving"}
    assert sophia_command("retire", "documents", "2").code == 1
    assert "v1 serves again" in sophia_command("rollback", "documents").out
    assert sophia_command("promote", "documents", "--version", "2", "--skip-gates", "--json").json == {
        "index": "documents",
        "before": 1,
        "serves": 2,
        "gates": [],
    }
    assert "3 ledger rows are removed" in sophia_command("retire", "documents", "1").out
    assert connection.execute("SELECT to_regclass('indexes.documents_v1')").fetchone() == (None,)
    shown = sophia_command("versions", "documents")
    assert "retired" in shown.out
    gone = sophia_command("rollback", "documents")
    assert (gone.code, "no earlier version" in gone.err) == (1, True)
    again = sophia_command("promote", "documents", "--version", "1")
    assert (again.code, "has no version 1 that is fed; there are: 2 (serving)" in again.err) == (1, True)


@pytest.mark.usefixtures("changed_template", "hasty_gates")
def test_rule_a_gate_that_fails_refuses_with_exit_code_1(sophia_command: Sophia, connection: Connection) -> None:
    sophia_command("repair", "documents")
    connection.execute("DELETE FROM indexes.documents_v2 WHERE key = '[2]'")
    connection.execute("UPDATE sophia.ledger SET state = 'applied'")
    done = sophia_command("promote", "documents")
    assert done.code == 1
    assert "FAIL  proven:" in done.out
    assert "v1 goes on serving: v2 does not pass proven" in done.out
    found = sophia_command("promote", "documents", "--json")
    assert found.code == 1
    assert {gate["name"]: gate["passed"] for gate in found.json["gates"]}["proven"] is False
    assert found.json["serves"] == 1


@pytest.mark.parametrize("command", [("promote",), ("rollback",), ("versions",), ("retire", "1")])
def test_an_unknown_index_is_said(sophia_command: Sophia, documents: Documents, command: tuple[str, ...]) -> None:
    done = sophia_command(command[0], "documnets", *command[1:])
    assert done.code in (1, 2)
    assert "documnets" in done.err
    assert "Traceback" not in done.err


def test_erase_lists_what_it_removed_and_what_stays(
    sophia_command: Sophia, documents: Documents, connection: Connection
) -> None:
    refused = sophia_command("erase", "documents", "2")
    assert refused.code == 1
    assert "delete it in the source first, or say --force" in refused.err
    documents.delete(2)
    done = sophia_command("erase", "documents", "2")
    assert done.code == 0, done.err
    assert "documents v1" in done.out
    assert "write-ahead log" in done.out
    assert "backups" in done.out
    assert "[2]" not in done.out
    again = sophia_command("erase", "documents", "2", "--json").json
    assert set(again["removed"].values()) == {0}
    assert len(again["key_hash"]) == 64
    assert connection.execute("SELECT count(*) FROM sophia.documents").fetchone() == (2,)
    forced = sophia_command("erase", "documents", "3", "--force", "--rewrite")
    assert forced.code == 0
    assert "its next change or copy brings it back" in forced.out


def test_erase_reaches_the_redis_that_the_settings_name(
    sophia_command: Sophia,
    documents: Documents,
    connection: Connection,
    redis_server: RedisStand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also when it is not the cache in use any more."""
    monkeypatch.setenv("SOPHIA_EMBEDDING__REDIS_URL", redis_server.url)
    row = connection.execute("SELECT spec ->> 'model_fingerprint' FROM sophia.index_versions").fetchone()
    assert row is not None
    cache = redis_server.cache()
    cache.write(row[0], cache.epoch(row[0]), {b"h" * 32: b"vector"})
    documents.delete(2)
    redis_server.down()
    refused = sophia_command("erase", "documents", "2")
    assert refused.code == 3
    assert "Redis" in refused.err
    redis_server.up()
    done = sophia_command("erase", "documents", "2", "--json").json
    assert done["removed"]["cache in Redis"] == 1
    assert done["removed"]["documents"] == 1
    assert redis_server.entries(row[0]) == {}


def test_why_names_code_and_spans(sophia_command: Sophia, documents: Documents) -> None:
    sophia_command("repair", "documents")
    found = sophia_command("why", "documents", "1", "--json").json
    assert found["chunks"][0]["start"] == 0
    assert {"code", "image", "host", "run_kind"} <= set(found)
