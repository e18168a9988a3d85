"""Who wrote, with what code: `run` leads there, and `why` says all of it."""

from __future__ import annotations

import importlib.metadata
import json
import socket
from typing import Any

import pytest

from sophia.documents import Change, Clock, Origin, canonical_key
from sophia.errors import SophiaError
from sophia.indexing import provenance
from sophia.indexing.provenance import code_version, register_run
from sophia.indexing.status import why
from sophia.indexing.writer import Writer
from sophia.settings import Settings, load_settings
from sophia.stores import PgvectorStore
from tests.integration.library import Library


def test_a_run_leads_to_code_image_and_host(library: Library, settings: Settings) -> None:
    told = settings.model_copy(update={"image": "sophia@sha256:1f", "code_version": "0.9+c0ffee"})
    run = register_run(library.connection, "live", told)
    assert run.startswith("live/")
    again = register_run(library.connection, "live", told)
    assert again != run
    row = library.connection.execute("SELECT kind, code, image, host FROM sophia.runs WHERE run = %s", [run]).fetchone()
    assert row == ("live", "0.9+c0ffee", "sophia@sha256:1f", socket.gethostname())


def test_steps_of_one_run_share_its_row(library: Library, settings: Settings) -> None:
    for _ in range(2):
        assert register_run(library.connection, "dagster", settings, run="a-dagster-run") == "a-dagster-run"
    assert library.connection.execute("SELECT count(*) FROM sophia.runs").fetchone() == (1,)


def test_the_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOPHIA_IMAGE", "sophia@sha256:2e")
    monkeypatch.setenv("SOPHIA_CODE_VERSION", "1.0+abc")
    settings = load_settings()
    assert (settings.image, settings.code_version) == ("sophia@sha256:2e", "1.0+abc")


class Installed:
    """A package as pip records it."""

    version = "1.2"

    def __init__(self, origin: dict[str, Any] | None) -> None:
        self._origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self._origin is None else json.dumps(self._origin)


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        (None, "1.2"),
        ({"url": "file:///src", "dir_info": {"editable": True}}, "1.2"),
        ({"url": "https://host/repo", "vcs_info": {"vcs": "git", "commit_id": "c0ffee" * 6}}, "1.2+c0ffeec0ffee"),
    ],
)
def test_the_code_version_is_the_installed_one_with_its_commit(
    monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any] | None, wanted: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed(origin))
    code_version.cache_clear()
    try:
        assert code_version() == wanted
    finally:
        code_version.cache_clear()


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGE", "not-there-at-all")
    code_version.cache_clear()
    assert code_version() == "unknown"
    code_version.cache_clear()


def test_rule_why_says_everything_of_a_vector(library: Library, settings: Settings) -> None:
    from datetime import UTC, datetime

    from sophia import inbox

    version = library.version()
    at = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    connection = library.connection
    connection.execute(
        "INSERT INTO sophia.captures (source, slot, publication, system_identifier) VALUES ('s', 's', 'p', '1')"
    )
    connection.execute(
        "INSERT INTO sophia.captured_tables (source, collection_id, table_name, relation_oid, consistent_point) "
        "VALUES ('s', %s, 'public.documents', 1, '0/1')",
        [version.collection_id],
    )
    body = {"id": 5, "title": "Lighthouse", "body": "keeps ships from rocks " * 60, "module": "m", "kind": "k"}
    change = Change(canonical_key([5]), "c", Clock(1, 700, 3), body, origin=Origin(0x16B374D848, 4711, at))
    with connection.transaction():
        inbox.accept(connection, "documents", [change])
    told = settings.model_copy(update={"image": "sophia@sha256:1f", "code_version": "0.9+c0ffee"})
    run = register_run(connection, "cli", told)
    size = settings.indexer.max_text_bytes
    Writer(version, PgvectorStore(), library.embedder, size, run=run, lane="live").apply(connection, library.rows(5))

    found = why(connection, "documents", "5")
    wanted = {
        "source_table": "public.documents",
        "key": "[5]",
        "lsn": "16/B374D848",
        "txid": 4711,
        "committed_at": at,
        "fingerprint": version.fingerprint,
        "model": "minilm",
        "run": run,
        "run_kind": "cli",
        "code": "0.9+c0ffee",
        "image": "sophia@sha256:1f",
        "host": socket.gethostname(),
    }
    assert {name: found[name] for name in wanted} == wanted
    chunks = found["chunks"]
    assert len(chunks) > 1
    assert [chunk["content_hash"] for chunk in chunks] == found["content_hashes"]
    text = f"Lighthouse\n\n{body['body']}"
    stored = [content for _, _, content, _ in library.stored(version)]
    assert [text[chunk["start"] : chunk["end"]].strip() for chunk in chunks] == [content.strip() for content in stored]
    assert {(c["lsn"], c["txid"], c["committed_at"], c["run"]) for c in chunks} == {("16/B374D848", 4711, at, run)}
    row = connection.execute(
        "SELECT DISTINCT lsn::text, txid, committed_at, clock, fingerprint, version, run FROM indexes.documents"
    ).fetchall()
    assert row == [("16/B374D848", 4711, at, [1, 700, 3], version.fingerprint, 1, run)]


def test_why_of_an_unknown_key_says_so(library: Library) -> None:
    library.version()
    with pytest.raises(SophiaError, match="has never seen key"):
        why(library.connection, "documents", "5")
