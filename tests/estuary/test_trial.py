"""What `sophia estuary send` is made of: files, tables, and following a table."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from sophia.errors import ConfigurationError, SourceError
from sophia.estuary.stand_in import trial
from sophia.estuary.stand_in.journal import Journal
from sophia.estuary.stand_in.source_postgres import Captured
from tests.estuary.recorder import Recorder
from tests.estuary.scene import NAME, Source, Writer, materializer, state_of
from tests.waiting import until


def test_a_file_of_documents_and_of_rows_is_read(tmp_path: Path, writer: Writer) -> None:
    whole = writer.document("d", 1)
    unstamped = {"id": 2, "_meta": {"op": "u", "source": {"loc": [1, 2, 3]}}}
    lines = [json.dumps(whole), "", json.dumps(unstamped), '{"id": 3, "title": "a row"}']
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(lines))
    with Journal(writer.path) as journal:
        assert trial.journal_file(journal, file, NAME) == 3
        first, second, third = (entry.document for entry in journal.read(0, [NAME], 10))
    assert first == whole
    assert second["_meta"]["op"] == "u"
    assert third["_meta"]["op"] == "c"
    assert third["_meta"]["source"] == {"snapshot": True, "loc": [-1, 3, 0]}
    assert second["_meta"]["uuid"] != third["_meta"]["uuid"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{}\n{", "line 2: is no JSON"),
        ("[1]", "line 1: a document is a JSON object"),
        ('{"id": 1, "_meta": 5}', "line 1: a document is a JSON object"),
        ('{"id": 1, "_meta": {"op": "c", "uuid": "x"}}', "is no UUID"),
    ],
)
def test_a_file_that_cannot_be_sent_says_where(tmp_path: Path, journal: Path, content: str, fault: str) -> None:
    file = tmp_path / "documents.jsonl"
    file.write_text(content)
    with Journal(journal) as opened, pytest.raises(ConfigurationError, match=fault):
        trial.journal_file(opened, file, NAME)
    with Journal(journal) as opened, pytest.raises(ConfigurationError, match="cannot be read"):
        trial.journal_file(opened, tmp_path / "none", NAME)


def test_a_table_that_is_followed_leaves_nothing_on_the_server(source: Source, recorder: Recorder) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY, body text)")
    source.execute("INSERT INTO items VALUES (1, 'a'), (2, 'b')")
    stop = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with materializer(source.path, recorder.url) as stand_in:
                captured = Captured("public.items", NAME)
                trial.follow(stand_in, source.path, source.database.url, captured, stop, lambda figures: None)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        until(lambda: set(state_of(recorder.documents)) == {1, 2}, "the rows")
        source.execute("DELETE FROM items WHERE id = 1")
        until(lambda: set(state_of(recorder.documents)) == {2}, "the delete")
    finally:
        stop.set()
        thread.join(60)
    assert failed == []

    def left() -> tuple[Any, ...] | None:
        return source.connection.execute(
            "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()), "
            "(SELECT count(*) FROM pg_publication)"
        ).fetchone()

    until(lambda: left() == (0, 0), "the end of slot and publication")


def test_a_table_that_cannot_be_followed_says_why(source: Source, recorder: Recorder) -> None:
    captured, stop = Captured("public.nothing", NAME), threading.Event()
    with (
        materializer(source.path, recorder.url) as stand_in,
        pytest.raises(SourceError, match=r"public\.nothing: does not exist"),
    ):
        trial.follow(stand_in, source.path, source.database.url, captured, stop, lambda figures: None)
