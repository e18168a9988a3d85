"""Rows that are read again from behind Estuary, and the sweep of those that went without a word."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia import inbox
from sophia.catalog import Catalog
from sophia.database import Database
from sophia.documents import Change, Clock, Key, canonical_key, key_hash, uuid_time
from sophia.errors import ConfigurationError, SourceError
from sophia.estuary.source import rows as source_rows
from sophia.estuary.source import sweep as sweep_module
from sophia.estuary.source.reread import MOST_ROWS, Rereader, reread_collection
from sophia.estuary.source.rows import SourceRows
from sophia.estuary.source.sweep import Swept, sweep
from sophia.estuary.stamps import clock_at
from sophia.settings import Settings
from tests.catalogs import changed, replaced
from tests.estuary.scene import estuary_catalog
from tests.waiting import until

Connection = psycopg.Connection[TupleRow]
Runner = Callable[..., Any]
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


class Inbox:
    """The collection `items` of a test, its table, and documents that nobody delivered."""

    def __init__(self, connection: Connection, database: Database, catalog: Catalog, settings: Settings) -> None:
        self.connection, self.database, self.settings = connection, database, settings
        self.catalog = estuary_catalog(catalog)
        self.collection = self.catalog.collection("items")
        connection.execute("CREATE TABLE items (id int PRIMARY KEY, body text, n int)")
        self.id = inbox.ensure_collection(connection, "items", ["id"])

    def row(self, number: int, body: str | None, n: int = 1) -> None:
        self.connection.execute("INSERT INTO items VALUES (%s, %s, %s)", [number, body, n])

    def deliver(
        self, number: Any, body: dict[str, Any] | None, position: int, missing: tuple[str, ...] = (), ordinal: int = 0
    ) -> None:
        row = None if body is None else {"id": number, "n": 1} | body
        clock = Clock(1, position, ordinal)
        change = Change(canonical_key([number]), "d" if row is None else "u", clock, row, not missing, missing)
        with self.connection.transaction():
            inbox.accept(self.connection, "items", [change])

    def ask(self, number: int, position: int) -> None:
        self.connection.execute(
            "INSERT INTO sophia.rereads (collection_id, key, clock, reason) VALUES (%s, %s, %s, 'moved') "
            "ON CONFLICT (collection_id, key) DO UPDATE SET clock = EXCLUDED.clock",
            [self.id, canonical_key([number]), [1, position, 0]],
        )

    def reread(self, limit: int = MOST_ROWS) -> int:
        return reread_collection(self.connection, self.collection, self.database.url, limit)

    def unanswered(self) -> list[str]:
        return [row[0] for row in self.connection.execute("SELECT key FROM sophia.rereads ORDER BY key")]

    def documents(self) -> dict[str, Any]:
        """Key to (body or None, clock)."""
        rows = self.connection.execute("SELECT key, deleted, body, clock FROM sophia.documents").fetchall()
        return {key: (None if deleted else body, tuple(clock)) for key, deleted, body, clock in rows}


@pytest.fixture
def scene(
    connection: Connection,
    database: Database,
    catalog: Catalog,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Inbox]:
    monkeypatch.setenv("SOPHIA_ESTUARY_SOURCE_URL", database.url)
    return Inbox(connection, database, catalog, settings)


def test_a_combined_key_change_keeps_the_new_row_of_the_old_key(scene: Inbox) -> None:
    """One transaction: 1 becomes 5, a new 1 comes, 5 is updated. A delete of 1 would bury a live row."""
    scene.row(1, "a new row")
    scene.row(5, "moved and updated")
    # What arrives, in the order of the keys: the insert of 1 (earlier), the combined document of 5 with `before` 1.
    scene.deliver(1, {"body": "a new row"}, position=20)
    scene.deliver(5, {"body": "moved and updated"}, position=30)
    scene.ask(1, position=30)
    assert scene.reread() == 1
    assert scene.documents()["[1]"] == ({"id": 1, "body": "a new row", "n": 1}, (1, 30, 1))
    assert scene.unanswered() == []


def test_an_old_key_without_a_row_becomes_a_delete_at_the_clock_that_asked(scene: Inbox) -> None:
    scene.row(5, "moved")
    scene.deliver(1, {"body": "old"}, position=20)
    scene.ask(1, position=30)
    scene.reread()
    assert scene.documents()["[1]"] == (None, (1, 30, 1))
    # Older than what was read: void. Newer: it wins, also when it committed before the look.
    scene.deliver(1, {"body": "late"}, position=29)
    assert scene.documents()["[1]"] == (None, (1, 30, 1))
    scene.deliver(1, {"body": "again"}, position=31)
    assert scene.documents()["[1]"][0] == {"id": 1, "n": 1, "body": "again"}


def test_a_row_is_read_behind_the_newest_delivery_of_its_key(scene: Inbox) -> None:
    """A later document that was merged into what the request is about hides nothing of it."""
    scene.row(1, "as it is in the source by now")
    scene.deliver(1, {"body": "a newer delivery"}, position=40)
    scene.ask(1, position=30)
    scene.reread()
    assert scene.documents()["[1]"] == ({"id": 1, "n": 1, "body": "as it is in the source by now"}, (1, 40, 1))
    assert scene.unanswered() == []


def test_what_is_delivered_while_a_row_is_read_outranks_it_and_the_request_stays(
    scene: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.row(1, "in the source")
    scene.deliver(1, {"body": "old"}, position=20)
    scene.ask(1, position=30)
    read = SourceRows.read

    def deliver(rows: SourceRows, keys: list[Key]) -> dict[Key, dict[str, Any]]:
        found = read(rows, keys)
        scene.deliver(1, {"body": "delivered meanwhile"}, position=40)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(SourceRows, "read", deliver)
        scene.reread()
    assert scene.documents()["[1]"] == ({"id": 1, "n": 1, "body": "delivered meanwhile"}, (1, 40, 0))
    assert scene.unanswered() == ["[1]"]
    scene.reread()
    assert scene.documents()["[1]"] == ({"id": 1, "n": 1, "body": "in the source"}, (1, 40, 1))
    assert scene.unanswered() == []


def test_requests_of_which_nothing_can_be_taken_end(scene: Inbox) -> None:
    """Of an erased key, and of what lies below the collection's floor."""
    scene.row(1, "erased")
    scene.connection.execute(
        "INSERT INTO sophia.erasures (collection_id, key_hash, clock) VALUES (%s, %s, '{9,0,0}')",
        [scene.id, key_hash(Key("[1]"))],
    )
    scene.connection.execute("UPDATE sophia.collections SET erasures = 1")
    scene.deliver(2, {"body": "below the floor"}, position=20, missing=("n",))
    inbox.raise_floor(scene.connection, "items", Clock(1, 50, 0))
    scene.ask(1, position=60)
    scene.ask(2, position=30)
    scene.reread()
    assert scene.unanswered() == []
    assert set(scene.documents()) == {"[2]"}
    assert scene.reread() == 0


def test_a_request_that_was_asked_again_meanwhile_stays(scene: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.deliver(1, {"body": "old"}, position=20)
    scene.ask(1, position=30)
    read = SourceRows.read

    def ask_again(rows: SourceRows, keys: list[Key]) -> dict[Key, dict[str, Any]]:
        found = read(rows, keys)
        with scene.database.connect("sophia-test") as other:
            other.execute("UPDATE sophia.rereads SET clock = '{1,50,0}'")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(SourceRows, "read", ask_again)
        scene.reread()
    assert scene.unanswered() == ["[1]"]
    scene.reread()
    assert scene.documents()["[1]"] == (None, (1, 50, 1))
    assert scene.unanswered() == []


def test_a_document_that_lacks_columns_is_read_at_its_own_clock(scene: Inbox) -> None:
    scene.row(1, "whole", 7)
    scene.deliver(1, {"n": 7}, position=20, missing=("body",))
    scene.deliver(2, {"n": 7}, position=21, missing=("body",), ordinal=1)
    assert scene.reread() == 2
    assert scene.documents() == {
        "[1]": ({"id": 1, "body": "whole", "n": 7}, (1, 20, 1)),
        "[2]": (None, (1, 21, 2)),
    }
    assert scene.reread() == 0


def test_a_replay_asks_for_nothing_that_was_answered(scene: Inbox) -> None:
    scene.row(1, "whole", 7)
    scene.deliver(1, {"n": 7}, position=20, missing=("body",))
    scene.reread()
    scene.deliver(1, {"n": 7}, position=20, missing=("body",))
    assert scene.reread() == 0


def test_dead_letters_of_what_was_read_again_go(scene: Inbox) -> None:
    scene.row(1, "whole")
    scene.deliver(1, {}, position=20, missing=("*",))
    inbox.park(scene.connection, "items", "[1]", stage="inbox", reason="a test", clock=Clock(1, 20, 0))
    rest_is_over(scene)
    scene.reread()
    assert scene.connection.execute("SELECT count(*) FROM sophia.dead_letters").fetchone() == (0,)


def test_keys_are_compared_in_their_columns_type(database: Database, connection: Connection) -> None:
    """A key has several JSON texts: a live row must not pass for gone because Estuary writes another one."""
    connection.execute(
        "CREATE TABLE odd (at timestamptz, amount numeric, raw bytea, id uuid, yes bool, PRIMARY KEY (at, amount, raw))"
    )
    connection.execute(
        "INSERT INTO odd VALUES ('2026-01-01 10:00:00.5+02', 1.50, '\\x00ff', "
        "'6f2b9f4e-0000-4000-8000-000000000001', true)"
    )
    key = canonical_key(["2026-01-01T08:00:00.5Z", "1.5", "AP8="])
    with SourceRows(database.url, "public.odd", ()) as rows:
        assert rows.key_fields == ("at", "amount", "raw")
        found = rows.read([key, canonical_key(["2026-01-01T08:00:00.6Z", "1.5", "AP8="])])
    assert list(found) == [key]
    assert (found[key]["at"], found[key]["amount"], found[key]["raw"]) == ("2026-01-01T08:00:00.5Z", "1.5", "AP8=")
    with SourceRows(database.url, "public.odd", ("id", "yes")) as rows:
        key = canonical_key(["6F2B9F4E-0000-4000-8000-000000000001", True])
        assert list(rows.read([key])) == [key]


def test_a_key_that_its_column_cannot_hold_belongs_to_no_row_and_stops_no_other(scene: Inbox) -> None:
    for number in range(1, 9):
        scene.row(number, f"row {number}")
    keys = [canonical_key([value]) for value in (1, "x", 2, 3, 10**12, "3.5", "\x00", 8)]
    keys.append(Key("[4,5]"))
    with SourceRows(scene.database.url, "public.items", ("id",)) as rows:
        assert set(rows.read(keys)) == {"[1]", "[2]", "[3]", "[8]"}
        assert rows.read([]) == {}


def unreadable_row(scene: Inbox, number: int) -> None:
    """A row that its server holds and Python's parser does not read."""
    scene.connection.execute("ALTER TABLE items ADD COLUMN IF NOT EXISTS extra json")
    scene.row(number, "a private text")
    scene.connection.execute("UPDATE items SET extra = %s WHERE id = %s", ["[" * 2_000 + "]" * 2_000, number])


def rest_is_over(scene: Inbox) -> None:
    """What could not be read may be tried again."""
    scene.connection.execute("UPDATE sophia.dead_letters SET last_seen = last_seen - interval '1 hour'")


def test_a_row_that_cannot_be_read_holds_up_no_other_and_is_not_shown_as_it_was(
    scene: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    unreadable_row(scene, 1)
    for number in (2, 3):
        scene.row(number, "in the source")
    for number in (1, 2, 3):
        scene.deliver(number, {"body": "old"}, position=20)
        scene.ask(number, position=30)
    rereader = Rereader(scene.catalog, scene.database, scene.settings)
    stop = threading.Event()
    with caplog.at_level("WARNING", logger="sophia.estuary"):
        rereader._look(scene.connection, stop)
        rest_is_over(scene)
        rereader._look(scene.connection, stop)
    assert "1 rows cannot be read" in caplog.text
    assert "private" not in caplog.text
    assert scene.unanswered() == ["[1]"]
    documents = scene.documents()
    assert [documents[key][0]["body"] for key in ("[2]", "[3]")] == ["in the source"] * 2
    state = scene.connection.execute("SELECT key, clock FROM sophia.documents WHERE missing <> '{}'").fetchall()
    assert state == [("[1]", [1, 30, 0])], "incomplete, and the second look changed nothing"
    parked = scene.connection.execute("SELECT key, reason, attempts FROM sophia.dead_letters").fetchall()
    assert [(key, "nested too deep" in reason, attempts) for key, reason, attempts in parked] == [("[1]", True, 2)]
    scene.connection.execute("UPDATE items SET extra = '[]' WHERE id = 1")
    rest_is_over(scene)
    rereader._look(scene.connection, stop)
    assert scene.documents()["[1]"][0] == {"id": 1, "body": "a private text", "n": 1, "extra": []}
    assert scene.connection.execute("SELECT FROM sophia.dead_letters").fetchall() == []
    assert scene.unanswered() == []


@pytest.mark.parametrize("how", ["asked for", "incomplete"])
def test_rows_that_can_never_be_read_starve_no_other(scene: Inbox, how: str) -> None:
    """Here two rows are looked at once, and three cannot be read, which came first."""

    def want(number: int) -> None:
        if how == "asked for":
            scene.ask(number, position=30)
        else:
            scene.deliver(number, {}, position=30, missing=("body",))

    def attempts() -> list[int]:
        rows = scene.connection.execute("SELECT attempts FROM sophia.dead_letters ORDER BY key").fetchall()
        return [row[0] for row in rows]

    for number in (1, 2, 3):
        unreadable_row(scene, number)
        want(number)
    for number in (4, 5):
        scene.row(number, "in the source")
    want(4)
    for _ in range(4):
        scene.reread(2)
    assert attempts() == [1, 1, 1], "those that rest are not looked at"
    assert scene.documents()["[4]"][0]["body"] == "in the source"
    rest_is_over(scene)
    want(5)
    scene.reread(2)
    assert scene.documents()["[5]"][0]["body"] == "in the source", "before those that were tried"
    for _ in range(4):
        scene.reread(2)
    assert attempts() == [2, 2, 2]
    # Neither a person who has mended them waits, nor a newer delivery.
    scene.connection.execute("UPDATE sophia.dead_letters SET last_seen = now() - interval '3 s', attempts = 9")
    assert scene.reread() == 0
    scene.ask(1, position=40)
    assert scene.reread() == 1
    scene.connection.execute("UPDATE sophia.dead_letters SET last_seen = now() - interval '3 s', attempts = 9")
    inbox.request_reread(scene.connection)
    assert scene.reread() == 3


def test_a_number_that_jsonb_cannot_hold_comes_as_text(scene: Inbox) -> None:
    scene.connection.execute("ALTER TABLE items ADD COLUMN extra json")
    scene.row(1, "there")
    scene.connection.execute("UPDATE items SET extra = %s::json", ["9" * 140_000])
    scene.ask(1, position=30)
    assert scene.reread() == 1
    assert scene.documents()["[1]"][0]["extra"] == "9" * 140_000


def test_the_server_is_not_quoted_in_the_log(
    scene: Inbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*arguments: Any) -> None:
        scene.connection.execute("SELECT 'a private text'::int")

    monkeypatch.setattr(SourceRows, "read", refused)
    scene.ask(1, position=30)
    with caplog.at_level("WARNING", logger="sophia.estuary"):
        assert Rereader(scene.catalog, scene.database, scene.settings)._look(scene.connection, threading.Event()) == 1
    assert "InvalidTextRepresentation (SQLSTATE 22P02)" in caplog.text
    assert "private" not in caplog.text


def test_a_row_that_row_security_hides_is_not_taken_for_gone(scene: Inbox) -> None:
    scene.row(1, "a live row")
    scene.connection.execute("ALTER TABLE items ENABLE ROW LEVEL SECURITY")
    scene.connection.execute("CREATE POLICY others ON items USING (id > 1)")
    scene.connection.execute("GRANT SELECT ON items TO pg_read_all_stats")
    with SourceRows(scene.database.url, "public.items", ("id",)) as rows:
        rows._connection.execute("SET ROLE pg_read_all_stats")
        with pytest.raises(SourceError, match="BYPASSRLS"):
            rows.read([canonical_key([1])])


def test_a_locked_table_is_not_waited_for_without_end(
    scene: Inbox, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(source_rows, "_OPTIONS", source_rows._OPTIONS.replace("lock_timeout=5s", "lock_timeout=50ms"))
    scene.row(1, "there")
    scene.ask(1, position=30)
    rereader = Rereader(scene.catalog, database, scene.settings)
    with database.connect() as other, other.transaction():
        other.execute("LOCK TABLE items")
        other.execute("SET LOCAL idle_in_transaction_session_timeout = '20s'")
        assert rereader._look(scene.connection, threading.Event()) == 1
    assert "public.items: is locked" in caplog.text
    assert rereader._look(scene.connection, threading.Event()) == 0
    assert scene.unanswered() == []


def test_a_row_whose_values_the_server_cannot_show_is_not_taken_for_gone(scene: Inbox) -> None:
    scene.row(1, "a live row")
    scene.row(2, "another")
    with SourceRows(scene.database.url, "public.items", ("id",)) as rows:
        # Not of the key's making: its column is read through an expression that fails.
        scene.connection.execute("ALTER TABLE items RENAME TO rows_of_items")
        scene.connection.execute(
            "CREATE VIEW items AS SELECT id, body, CASE id WHEN 1 THEN n / (id - 1) ELSE n END AS n FROM rows_of_items"
        )
        found = rows.read([canonical_key([number]) for number in (1, 2, 3)])
    assert list(found) == ["[2]"]
    assert rows.unreadable == {"[1]": "SQLSTATE 22012"}


def test_a_table_that_cannot_be_read_says_why(scene: Inbox) -> None:
    with pytest.raises(SourceError, match=r"public\.nothing: does not exist"):
        SourceRows(scene.database.url, "public.nothing", ("id",))
    with pytest.raises(SourceError, match="has no key column 'wrong'"):
        SourceRows(scene.database.url, "public.items", ("wrong",))


def test_the_rereader_answers_and_survives_faults(
    scene: Inbox, run_loop: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sophia.estuary.source.reread.PAUSE_SECONDS", 0.05)
    scene.deliver(1, {"body": "old"}, position=20)
    scene.connection.execute("ALTER TABLE items RENAME TO away")
    scene.ask(1, position=30)
    rereader = Rereader(scene.catalog, scene.database, scene.settings, poll_seconds=0.02)
    assert rereader.configured
    running = run_loop(rereader)
    assert scene.unanswered() == ["[1]"]
    scene.connection.execute("ALTER TABLE away RENAME TO items")
    until(lambda: not scene.unanswered(), "the answer")
    # Its own connection cut.
    scene.connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'sophia-estuary-reread'"
    )
    scene.row(2, "there")
    scene.ask(2, position=40)
    until(lambda: not scene.unanswered(), "the answer after a cut connection")
    assert scene.documents()["[2]"] == ({"id": 2, "body": "there", "n": 1}, (1, 40, 1))
    running.stop()


def test_without_a_dsn_nothing_is_read(scene: Inbox, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOPHIA_ESTUARY_SOURCE_URL")
    assert not Rereader(scene.catalog, scene.database, scene.settings).configured
    with pytest.raises(ConfigurationError, match="SOPHIA_ESTUARY_SOURCE_URL is not set"):
        sweep(scene.connection, scene.catalog, "items", scene.settings, before=BEGAN)
    with pytest.raises(ConfigurationError, match="give it `url_env`"):
        sweep(scene.connection, estuary_catalog(catalog, variable=None), "items", scene.settings, before=BEGAN)
    with pytest.raises(ConfigurationError, match="is not fed by Estuary"):
        sweep(scene.connection, catalog, "documents", scene.settings, before=BEGAN)


# ---- the sweep -------------------------------------------------------------------------------------------


def before(seconds: float) -> int:
    """The clock of a document that was published so long before the backfill."""
    return clock_at(BEGAN - timedelta(seconds=seconds))


def swept(scene: Inbox, **options: Any) -> Swept:
    return sweep(scene.connection, scene.catalog, "items", scene.settings, **{"before": BEGAN} | options)


def test_a_sweep_deletes_orphans_refreshes_what_differs_and_leaves_the_rest(scene: Inbox) -> None:
    for number in (1, 2, 4):
        scene.row(number, f"row {number}")
    scene.deliver(1, {"body": "row 1"}, before(60))
    scene.deliver(2, {"body": "as it was"}, before(50))
    scene.deliver(3, {"body": "an orphan"}, before(40))
    scene.deliver(5, {"body": "an orphan that the backfill brought"}, before(-1))
    steps: list[tuple[int, int]] = []
    figures = swept(scene, progress=lambda done, total: steps.append((done.looked_at, total)))
    assert (figures.looked_at, figures.deleted, figures.refreshed, figures.left) == (3, 1, 1, 1)
    assert steps == [(3, 3)]
    documents = scene.documents()
    assert documents["[1]"] == ({"id": 1, "body": "row 1", "n": 1}, (1, before(60), 0))
    assert documents["[2]"] == ({"id": 2, "body": "row 2", "n": 1}, (1, before(50), 1))
    assert documents["[3]"] == (None, (1, before(40), 1))
    assert documents["[5]"][0] is not None, "delivered since"
    assert swept(scene).deleted == 0


def test_nothing_is_looked_for_by_another_key_than_documents_are_kept_by(scene: Inbox) -> None:
    """No row would be found by it, so that each document would be taken for an orphan."""
    scene.row(1, "there")
    scene.deliver(1, {"body": "there"}, before(10))
    scene.ask(1, position=before(10))
    collections = replaced(scene.catalog.collections, scene.collection, key=("n",))
    scene.catalog = changed(scene.catalog, collections=collections)
    with pytest.raises(ConfigurationError, match=r"`sophia estuary rekey items`"):
        swept(scene)
    with pytest.raises(ConfigurationError, match=r"`sophia estuary rekey items`"):
        reread_collection(scene.connection, scene.catalog.collection("items"), scene.database.url)
    assert scene.documents()["[1]"][0] == {"id": 1, "body": "there", "n": 1}


def test_a_sweep_leaves_a_row_that_cannot_be_read_and_goes_on(scene: Inbox) -> None:
    unreadable_row(scene, 1)
    for number in (1, 2):
        scene.deliver(number, {"body": "as it was"}, before(60))
    figures = swept(scene)
    assert (figures.looked_at, figures.deleted, figures.unread) == (2, 1, 1)
    assert scene.documents()["[1]"][0]["body"] == "as it was"


def test_a_sweep_in_small_batches_sees_every_document(scene: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "BATCH", 3)
    for number in range(10):
        scene.deliver(number, {"body": "orphan"}, before(60))
    assert swept(scene).deleted == 10
    assert all(body is None for body, _ in scene.documents().values())


def test_a_dry_run_changes_nothing(scene: Inbox) -> None:
    scene.deliver(3, {"body": "an orphan"}, before(40))
    earlier = scene.documents()
    assert swept(scene, dry_run=True).deleted == 1
    assert scene.documents() == earlier


def test_a_delivery_during_a_sweep_outranks_it(scene: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.deliver(3, {"body": "old"}, before(40))
    read = SourceRows.read

    def inserted_meanwhile(rows: SourceRows, keys: list[Key]) -> dict[Key, dict[str, Any]]:
        found = read(rows, keys)
        scene.deliver(3, {"body": "inserted again"}, before(-5))
        return found

    monkeypatch.setattr(SourceRows, "read", inserted_meanwhile)
    assert swept(scene).deleted == 1
    assert scene.documents()["[3]"] == ({"id": 3, "n": 1, "body": "inserted again"}, (1, before(-5), 0))


def test_a_sweep_that_was_broken_off_is_started_again(scene: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "BATCH", 2)
    for number in range(5):
        scene.deliver(number, {"body": "orphan"}, before(60))

    class StopError(Exception):
        pass

    def stop(done: Swept, total: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        swept(scene, progress=stop)
    assert swept(scene).deleted == 3


def test_a_moments_clock_is_that_of_a_document_published_then() -> None:
    assert uuid_time(clock_at(BEGAN)) == BEGAN


def test_a_source_that_is_away_is_said_once_and_stops_nothing(
    scene: Inbox, run_loop: Runner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOPHIA_ESTUARY_SOURCE_URL", "postgresql://someone:secret@127.0.0.1:1/nowhere")
    scene.ask(1, position=30)
    stop = threading.Event()
    rereader = Rereader(scene.catalog, scene.database, scene.settings)
    with caplog.at_level("WARNING", logger="sophia.estuary"):
        running = run_loop(rereader)
        stop.set()
        running.stop()
    assert "rows of items cannot be read again" in caplog.text
    assert "secret" not in caplog.text
    assert scene.unanswered() == ["[1]"]
