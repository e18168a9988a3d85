"""Commands that look: what they show, as JSON and as tables, and the exit code that scripts go by."""

from __future__ import annotations

import shutil
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia import inbox
from sophia.catalog import Catalog, default_path
from tests.console import Documents
from tests.integration.cli.conftest import Sophia

Connection = psycopg.Connection[TupleRow]


@pytest.mark.usefixtures("documents")
def test_status_counts_what_is_indexed(sophia_command: Sophia) -> None:
    found = sophia_command("status", "--json").json
    (index,) = found["indexes"]
    assert (index["index"], index["state"], index["documents"], index["indexed"]) == ("documents", "serving", 3, 3)
    assert index["indexer_running"] is False
    assert "database" in found
    shown = sophia_command("status")
    assert shown.code == 0
    assert "documents v1" in shown.out


@pytest.mark.usefixtures("documents")
def test_status_shows_how_far_verification_is(sophia_command: Sophia, connection: Connection) -> None:
    assert "nothing yet" in sophia_command("status").out
    connection.execute(
        "INSERT INTO sophia.scans (version_id, verified, next_bucket, cycle_seconds, cycle_ended_at, found, repaired) "
        "SELECT id, position, 16384, 70, '2026-01-02 03:04Z', 5, 4 FROM sophia.index_versions"
    )
    (index,) = sophia_command("status", "--json").json["indexes"]
    assert index["verified"] == index["position"]
    assert index["verified_lsn"] == index["source_lsn"] or index["verified_lsn"] is not None
    assert (index["scanned"], index["scan_seconds"], index["drift_found"], index["drift_repaired"]) == (0.25, 70, 5, 4)
    shown = sophia_command("status").out
    for words in (index["verified_lsn"], "25%", "70 s", "5, 4"):
        assert words in shown


def test_status_of_an_empty_platform_is_no_error(sophia_command: Sophia) -> None:
    found = sophia_command("status", "--json")
    assert (found.code, found.json["indexes"], found.json["captures"]) == (0, [], [])


@pytest.mark.usefixtures("documents")
def test_search_finds_filters_and_limits(sophia_command: Sophia) -> None:
    # The cheap embedder knows only equal texts.
    hits = sophia_command("search", "documents", "Glacier\n\ncarves valleys", "--json").json
    assert hits[0]["key"] == "[3]"
    assert hits[0]["score"] == pytest.approx(1, abs=1e-3)
    assert len(hits) == 3
    recipes = sophia_command("search", "documents", "anything", "--filter", "kind=recipe", "--json").json
    assert [hit["key"] for hit in recipes] == ["[2]"]
    assert len(sophia_command("search", "documents", "anything", "-k", "1", "--json").json) == 1
    hybrid = sophia_command("search", "documents", "sourdough", "--hybrid", "-k", "1", "--json").json
    assert [hit["key"] for hit in hybrid] == ["[2]"]


@pytest.mark.usefixtures("documents")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("search", "documnets", "x"), 1, "documnets"),
        (("search", "documents", "x", "--filter", "kind"), 1, "FIELD=VALUE"),
        (("search", "documents", "x", "--filter", "kind=NaN"), 1, "a value cannot be used"),
        (("search", "documents", "x", "--filter", 'kind="\\u0000"'), 1, "a value cannot be used"),
        (("search", "documents"), 2, "text"),
        (("verify", "nothing"), 1, "there are: documents"),
        (("why", "documents", "99"), 1, "has never seen key [99]"),
        (("why", "documents", '"\\ud800"'), 1, "half a surrogate pair"),
        (("why", "nothing", "1"), 1, "there are: documents"),
    ],
)
def test_a_question_without_an_answer_says_what_to_ask(
    sophia_command: Sophia, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = sophia_command(*arguments)
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err


def test_why_tells_a_documents_whole_way(sophia_command: Sophia, documents: Documents) -> None:
    documents.put(2, "Sourdough", "rises overnight")
    found = sophia_command("why", "documents", "2", "--json").json
    assert (found["key"], found["state"], found["model"]) == ("[2]", "applied", "minilm")
    assert [change["op"] for change in found["history"]] == ["c", "c"]
    assert found["lsn"]
    assert found["content_hashes"]
    assert "rises" not in str(found)
    assert sophia_command("why", "documents", "2").code == 0


@pytest.mark.usefixtures("documents")
def test_verify_holds_or_lists_what_differs(sophia_command: Sophia, connection: Connection) -> None:
    done = sophia_command("verify", "documents", "--json")
    assert (done.code, done.json["holds"]) == (0, True)
    connection.execute("DELETE FROM indexes.documents_v1 WHERE key = '[2]'")
    done = sophia_command("verify", "documents", "--json")
    assert (done.code, done.json["holds"], done.json["keys"]["missing"]) == (1, False, ["[2]"])
    assert "missing: [2]" in sophia_command("verify", "documents").out


@pytest.mark.usefixtures("documents")
def test_dead_letters_are_listed_with_their_reason(sophia_command: Sophia, connection: Connection) -> None:
    assert sophia_command("dead-letters", "--json").json == []
    inbox.park(connection, "documents", "[7]", stage="inbox", reason="column `id` is no number")
    (letter,) = sophia_command("dead-letters", "--json").json
    assert (letter["key"], letter["stage"], letter["reason"]) == ("[7]", "inbox", "column `id` is no number")


def test_plan_shows_what_is_to_build_and_the_change_of_an_index(
    sophia_command: Sophia, documents: Documents, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = {entry["name"]: entry for entry in sophia_command("plan", "--kind", "indexes", "--json").json}
    assert before["memory"]["summary"] == "to build: version 1"
    assert before["documents"]["changes"] is False
    folder = _catalog(tmp_path, "indexes.yaml", 'template: "{title}\\n\\n{body}"', 'template: "{body}"')
    monkeypatch.setenv("SOPHIA_CATALOG", str(folder))
    after = {entry["name"]: entry for entry in sophia_command("plan", "--kind", "indexes", "--json").json}
    assert after["documents"]["summary"] == "to build beside documents v1: template changed"
    assert '+  "template": "{body}"' in after["documents"]["diff"]
    assert "nothing was applied" in sophia_command("plan").out


def test_catalog_counts_its_entries(sophia_command: Sophia, catalog: Catalog) -> None:
    found = sophia_command("catalog", "--json").json
    assert found["services"] == len(catalog.services)
    assert found["indexes"] == len(catalog.indexes)
    assert "properties" in sophia_command("catalog", "--schema").json


def test_doctor_passes_and_names_what_is_off(sophia_command: Sophia, tmp_path: Path) -> None:
    done = sophia_command("doctor", "--json")
    found = {finding["what"]: finding for finding in done.json}
    assert done.code == 0, [finding for finding in done.json if finding["state"] == "fail"]
    assert found["database"]["state"] == found["catalog"]["state"] == found["model minilm"]["state"] == "ok"
    assert found["Kubernetes"]["state"] == "off"
    assert all(finding["fix"] for finding in done.json if finding["state"] in ("warn", "fail"))


def test_doctor_goes_on_after_a_fault(sophia_command: Sophia, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOPHIA_DATABASE_URL", "postgresql://postgres:hidden@127.0.0.1:1/none")
    done = sophia_command("doctor", "--json")
    found = {finding["what"]: finding["state"] for finding in done.json}
    assert done.code == 1
    assert found["database"] == "fail"
    assert found["model minilm"] == "ok"
    assert "hidden" not in done.out


def _catalog(folder: Path, file: str, old: str, new: str) -> Path:
    """A copy of the catalog with one text replaced."""
    copy = folder / "catalog"
    shutil.copytree(default_path(), copy)
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new, 1))
    return copy


@pytest.mark.parametrize("command", ["status", "catalog", "plan", "doctor"])
def test_misspelt_settings_end_with_2_and_the_right_name(
    sophia_command: Sophia, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("SOPHIA_DATABASE_URI", "postgresql://")
    done = sophia_command(command)
    # The doctor reports instead of ending: exit code 1, "something is broken".
    assert done.code == (1 if command == "doctor" else 2)
    assert "SOPHIA_DATABASE_URL" in done.out + done.err


def test_a_broken_catalog_ends_with_2_and_names_the_place(
    sophia_command: Sophia, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = _catalog(tmp_path, "indexes.yaml", "collection: documents", "collection: documetns")
    monkeypatch.setenv("SOPHIA_CATALOG", str(folder))
    for command in ("catalog", "plan"):
        done = sophia_command(command)
        assert done.code == 2
        assert "indexes.yaml" in done.err
        assert "documetns" in done.err


@pytest.mark.parametrize(
    "arguments", [("status",), ("plan",), ("search", "documents", "x"), ("verify", "documents"), ("migrate",)]
)
def test_a_dead_database_ends_with_3_and_hides_the_password(
    sophia_command: Sophia, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("SOPHIA_DATABASE_URL", "postgresql://postgres:hidden@127.0.0.1:1/none")
    done = sophia_command(*arguments)
    assert done.code == 3
    assert "127.0.0.1" in done.err
    assert "hidden" not in done.err
    assert "Traceback" not in done.err
