"""The switch between versions: nothing that people set on the view is lost, search never goes back in time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia import failpoints
from sophia.catalog import Catalog
from sophia.errors import BusyError, ConfigurationError, FencedError, SophiaError
from sophia.indexing.promotion import BehindError, promote, retire, rollback, version_records
from sophia.indexing.repair import repair_shard
from sophia.indexing.search import search
from sophia.indexing.versions import IndexVersion, active_versions, ensure_version, serving_version
from sophia.retention import apply_retention
from sophia.stores import PgvectorStore
from tests.catalogs import changed, replaced
from tests.embedders import HashEmbedder
from tests.integration.library import Library
from tests.waiting import until

Connection = psycopg.Connection[TupleRow]
STORE = PgvectorStore()
OLD, NEW = "{title}\n\n{body}", "{body}"


class Killed(BaseException):
    """Stands for a process that ends at a failpoint."""


@pytest.fixture
def kill_at() -> Iterator[Callable[[str], None]]:
    """Ends the work at a failpoint."""

    def arm(wanted: str) -> None:
        def die(name: str) -> None:
            if name == wanted:
                raise Killed

        failpoints.arm(die)

    yield arm
    failpoints.arm(None)


@pytest.fixture
def shelf(library: Library) -> Library:
    """Version 1 of the index, with ten documents."""
    for number in range(10):
        library.put(number, f"title {number}", f"text {number}")
    library.repair()
    return library


def of_dimension(library: Library, dimension: int) -> Catalog:
    """The catalog with another model of another dimension under the same name."""
    model = library.catalog.model(library.index.model)
    return changed(library.catalog, models=replaced(library.catalog.models, model, dimension=dimension))


def built(library: Library, catalog: Catalog) -> IndexVersion:
    """The version that a catalog asks for, filled."""
    version = library.version(catalog)
    embedder = HashEmbedder(version.dimension)
    for shard in range(version.index.shards):
        repair_shard(library.connection, library.writer(version, embedder), shard, batch=10)
    return version


def served(connection: Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT content FROM indexes.documents")}


def states(connection: Connection) -> dict[int, str]:
    return {version.number: version.state for version in active_versions(connection)}


# ---- the view --------------------------------------------------------------------------------------------------


@pytest.fixture
def roles(connection: Connection) -> Iterator[tuple[str, str]]:
    """Two roles of the test's own: one that reads, one that may own."""
    names = (f"reader_{connection.info.dbname}", f"owner_{connection.info.dbname}")
    for name in names:
        connection.execute(f"CREATE ROLE {name}")
    yield names
    for name in names:
        connection.execute(f"DROP OWNED BY {name} CASCADE")
        connection.execute(f"DROP ROLE {name}")


def rights(connection: Connection) -> dict[str, Any]:
    """Owner, grants, options and comments of the public view."""
    row = connection.execute(
        "SELECT pg_get_userbyid(relowner), relacl::text, reloptions, obj_description(oid) FROM pg_class "
        "WHERE oid = 'indexes.documents'::regclass"
    ).fetchone()
    columns = connection.execute(
        "SELECT attname, attacl::text, col_description(attrelid, attnum) FROM pg_attribute "
        "WHERE attrelid = 'indexes.documents'::regclass AND (attacl IS NOT NULL "
        "OR col_description(attrelid, attnum) IS NOT NULL) ORDER BY attname"
    ).fetchall()
    return {"view": row, "columns": columns}


def decorate(connection: Connection, reader: str, owner: str) -> None:
    for statement in (
        f"GRANT USAGE ON SCHEMA indexes TO {reader}, {owner}",
        f"GRANT SELECT ON indexes.documents_v1 TO {owner}",
        f"ALTER VIEW indexes.documents OWNER TO {owner}",
        f"GRANT SELECT ON indexes.documents TO {reader} WITH GRANT OPTION",
        "GRANT SELECT (key, content) ON indexes.documents TO PUBLIC",
        "ALTER VIEW indexes.documents SET (security_barrier = true)",
        "COMMENT ON VIEW indexes.documents IS 'what people search'",
        "COMMENT ON COLUMN indexes.documents.content IS 'a chunk'",
    ):
        connection.execute(statement)


def as_older_code_made_it(connection: Connection) -> None:
    """The view with the dimension in its type and without its last columns: it cannot be replaced in place."""
    connection.execute("DROP VIEW indexes.documents")
    connection.execute(
        "CREATE VIEW indexes.documents AS SELECT key, chunk, content, content_hash, embedding, metadata, clock, lsn, "
        "'minilm'::text AS model, indexed_at, span, txid, committed_at, run FROM indexes.documents_v1"
    )


@pytest.mark.parametrize("anew", [False, True], ids=["in place", "made anew"])
def test_rule_view_keeps_owner_grants_options_and_comments(shelf: Library, roles: tuple[str, str], anew: bool) -> None:
    if anew:
        as_older_code_made_it(shelf.connection)
    decorate(shelf.connection, *roles)
    before = rights(shelf.connection)
    version = built(shelf, of_dimension(shelf, 128))
    promote(shelf.connection, version, STORE)
    after = rights(shelf.connection)
    assert after["view"][0] == roles[1]
    assert sorted(after["view"][1].strip("{}").split(",")) == sorted(before["view"][1].strip("{}").split(","))
    assert after["view"][2:] == before["view"][2:]
    assert after["columns"] == before["columns"]
    # And the grants still lead to rows: the view reads its table with its owner's rights.
    with shelf.connection.transaction():
        shelf.connection.execute(f"SET LOCAL ROLE {roles[0]}")
        assert shelf.connection.execute("SELECT count(*) FROM indexes.documents").fetchone() == (10,)


def test_default_privileges_add_nothing_to_a_view_made_anew(shelf: Library, roles: tuple[str, str]) -> None:
    as_older_code_made_it(shelf.connection)
    shelf.connection.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA indexes GRANT SELECT ON TABLES TO {roles[0]}")
    promote(shelf.connection, built(shelf, shelf.with_index(template=NEW)), STORE)
    row = shelf.connection.execute(
        "SELECT has_table_privilege(%s, 'indexes.documents', 'SELECT')", [roles[0]]
    ).fetchone()
    assert row == (False,)


def test_dependents_outlive_a_change_of_the_dimension(shelf: Library) -> None:
    shelf.connection.execute("CREATE VIEW mine AS SELECT key, embedding FROM indexes.documents")
    shelf.connection.execute("PREPARE reading AS SELECT key, embedding FROM indexes.documents ORDER BY key")
    shelf.connection.execute("EXECUTE reading")
    promote(shelf.connection, built(shelf, of_dimension(shelf, 128)), STORE)
    for statement in ("EXECUTE reading", "SELECT key, embedding FROM mine"):
        rows = shelf.connection.execute(statement).fetchall()
        assert {str(row[1]).count(",") + 1 for row in rows} == {128}


def test_rule_dependents_are_named_before_anything_is_done(shelf: Library) -> None:
    as_older_code_made_it(shelf.connection)
    for statement in (
        "CREATE VIEW mine AS SELECT key FROM indexes.documents",
        "CREATE MATERIALIZED VIEW kept AS SELECT content FROM indexes.documents",
        "CREATE FUNCTION counted() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM indexes.documents; END",
        "CREATE TABLE like_it (entry indexes.documents)",
    ):
        shelf.connection.execute(statement)
    version = built(shelf, shelf.with_index(template=NEW))
    with pytest.raises(ConfigurationError, match="drop them, run this again") as refused:
        promote(shelf.connection, version, STORE)
    for name in ("view mine", "materialized view kept", "function counted()", "table like_it"):
        assert name in str(refused.value)
    assert states(shelf.connection) == {1: "serving", 2: "building"}
    assert served(shelf.connection) == {f"title {n}\n\ntext {n}" for n in range(10)}
    for kind, name in (("TABLE", "like_it"), ("FUNCTION", "counted"), ("MATERIALIZED VIEW", "kept"), ("VIEW", "mine")):
        shelf.connection.execute(f"DROP {kind} {name}")
    assert promote(shelf.connection, version, STORE).switched


def test_view_leads_to_version_fingerprint_and_origin(shelf: Library) -> None:
    row = shelf.connection.execute(
        "SELECT model, fingerprint, version, lsn::text, clock, span::text, run FROM indexes.documents WHERE key = '[3]'"
    ).fetchone()
    version = serving_version(shelf.connection, "documents")
    assert row == ("minilm", version.fingerprint, 1, "0/D", [1, 13, 1], "[0,15)", "test")


def test_the_nearest_neighbour_index_serves_queries_of_the_view(shelf: Library) -> None:
    """The view hides the dimension; the planner must still see the index behind it."""
    shelf.connection.execute("SET enable_seqscan = off")
    query = "EXPLAIN SELECT key FROM indexes.documents ORDER BY embedding <=> array_fill(1, ARRAY[384])::vector LIMIT 3"
    plan = "\n".join(row[0] for row in shelf.connection.execute(query))
    STORE.finish(shelf.connection, serving_version(shelf.connection, "documents"))
    plan = "\n".join(row[0] for row in shelf.connection.execute(query))
    assert "documents_v1_hnsw" in plan


def test_an_outdated_view_is_brought_up_to_date_where_nothing_depends_on_it(shelf: Library) -> None:
    as_older_code_made_it(shelf.connection)
    shelf.version()
    assert shelf.connection.execute("SELECT max(version) FROM indexes.documents").fetchone() == (1,)
    as_older_code_made_it(shelf.connection)
    shelf.connection.execute("CREATE VIEW mine AS SELECT key FROM indexes.documents")
    shelf.version()
    assert shelf.connection.execute("SELECT count(*) FROM mine").fetchone() == (10,)


# ---- readers ---------------------------------------------------------------------------------------------------


def test_rule_a_long_reader_does_not_block_other_readers(shelf: Library) -> None:
    """Our request for the view waits in short turns, so others come through; at last the reader is named."""
    version = built(shelf, shelf.with_index(template=NEW))
    outcome: list[BaseException | None] = []

    def switch() -> None:
        try:
            with shelf.database.connect("promoter") as connection:
                promote(connection, version, STORE, patience=5.0)
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    with shelf.database.connect("long reader", autocommit=False) as reader, shelf.database.connect("other") as other:
        reader.execute("SELECT count(*) FROM indexes.documents")
        thread = threading.Thread(target=switch)
        thread.start()
        other.execute("SET lock_timeout = '4s'")
        while thread.is_alive():
            # Each of these would wait for the long reader's end if the request stayed in the queue.
            assert other.execute("SELECT count(*) FROM indexes.documents").fetchone() == (10,)
        thread.join()
        (error,) = outcome
        assert isinstance(error, BusyError)
        assert f"pid {reader.info.backend_pid} long reader" in str(error)
        assert states(shelf.connection) == {1: "serving", 2: "building"}
        reader.rollback()
    assert promote(shelf.connection, version, STORE).switched


def test_rule_readers_of_the_view_see_one_version_or_the_other(shelf: Library) -> None:
    """Also where the view is dropped and made anew: a reader that waits finds the new one."""
    as_older_code_made_it(shelf.connection)
    version = built(shelf, shelf.with_index(template=NEW))
    stop, seen, errors = threading.Event(), set(), []

    def read() -> None:
        with shelf.database.connect("reader") as connection:
            while not stop.is_set():
                try:
                    seen.add(frozenset(row[0] for row in connection.execute("SELECT content FROM indexes.documents")))
                except psycopg.Error as error:
                    errors.append(error)
                    return

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: seen, "the first reader")
    promote(shelf.connection, version, STORE)
    new = frozenset(f"text {n}" for n in range(10))
    until(lambda: new in seen or errors, "readers of the new version")
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert seen <= {new, frozenset(f"title {n}\n\ntext {n}" for n in range(10))}


class Asked:
    """The embedder of one version, which knows for which it was made."""

    def __init__(self, version: IndexVersion) -> None:
        self.version = version
        self.embedder = HashEmbedder(version.dimension)

    def embed_query(self, text: str) -> Any:
        return self.embedder.embed_query(text)


def test_rule_search_during_switches_never_mixes_models(shelf: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dimensions differ, so a query of one model on the other's vectors would be an error of the server."""
    new = built(shelf, of_dimension(shelf, 128))
    embedders: dict[int, Asked] = {}
    searched: list[tuple[int, int]] = []
    store_search = PgvectorStore.search

    def spy(self: PgvectorStore, connection: Connection, version: IndexVersion, query: Any) -> Any:
        searched.append((version.dimension, len(query.vector)))
        return store_search(self, connection, version, query)

    monkeypatch.setattr(PgvectorStore, "search", spy)
    stop, errors = threading.Event(), []

    def asked(version: IndexVersion) -> Any:
        return embedders.setdefault(version.id, Asked(version))

    def look() -> None:
        with shelf.database.connect("searcher") as connection:
            while not stop.is_set():
                try:
                    hits = search(
                        connection,
                        "documents",
                        "title 5\n\ntext 5",
                        lambda v: embedders.setdefault(v.id, Asked(v)),
                        k=1,
                    )
                    assert hits[0].key == "[5]"
                except BaseException as error:
                    errors.append(error)
                    return

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: searched, "the first search")
    for _ in range(4):
        for version, dimension in ((new, 128), (None, 384)):
            if version is not None:
                promote(shelf.connection, version, STORE)
            else:
                rollback(shelf.connection, "documents")
            before = len(searched)
            until(lambda d=dimension, b=before: any(s[0] == d for s in searched[b:]) or errors, "a search after")
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert {dimension for dimension, _ in searched} == {128, 384}
    assert all(dimension == length for dimension, length in searched)


def test_a_search_whose_version_is_retired_meanwhile_asks_the_next_one(shelf: Library) -> None:
    new = built(shelf, of_dimension(shelf, 128))
    old = serving_version(shelf.connection, "documents")

    def embedder_of(version: IndexVersion) -> Any:
        if version.id == old.id:
            promote(shelf.connection, new, STORE)
            retire(shelf.connection, old, STORE)
        return HashEmbedder(version.dimension)

    hits = search(shelf.connection, "documents", "title 5\n\ntext 5", embedder_of, k=1)
    assert hits[0].key == "[5]"
    with contextlib.suppress(psycopg.Error):
        shelf.connection.execute("ALTER TABLE indexes.documents_v2 RENAME TO elsewhere")
    with pytest.raises(FencedError, match="lacks a table"):
        search(shelf.connection, "documents", "x", lambda version: HashEmbedder(version.dimension))


# ---- never back in time ----------------------------------------------------------------------------------------


def position_to(connection: Connection, version: IndexVersion, position: int) -> None:
    connection.execute("UPDATE sophia.index_versions SET position = %s WHERE id = %s", [position, version.id])


def test_rule_a_version_behind_in_the_live_lane_is_refused(shelf: Library) -> None:
    version = built(shelf, shelf.with_index(template=NEW))
    old = serving_version(shelf.connection, "documents")
    position_to(shelf.connection, old, version.position + 1)
    with pytest.raises(BehindError, match=r"try again when the indexer has caught up"):
        promote(shelf.connection, version, STORE, patience=0.3)
    assert states(shelf.connection) == {1: "serving", 2: "building"}
    position_to(shelf.connection, version, version.position + 1)
    switch = promote(shelf.connection, version, STORE)
    assert (switch.before, switch.now, switch.switched) == (1, 2, True)
    assert not promote(shelf.connection, version, STORE).switched


def test_rule_a_version_behind_in_the_bulk_lane_is_refused(shelf: Library) -> None:
    version = shelf.version(shelf.with_index(template=NEW))
    with pytest.raises(BehindError, match="compared up to position -1"):
        promote(shelf.connection, version, STORE, patience=0.0)
    shelf.repair(version=version)
    shelf.put(50, bulk=True)
    shelf.repair(version=serving_version(shelf.connection, "documents"))
    with pytest.raises(BehindError, match="shards of documents v2"):
        promote(shelf.connection, version, STORE, patience=0.0)
    shelf.repair(version=version)
    assert promote(shelf.connection, version, STORE).switched


def test_rule_rollback_goes_back_to_the_last_and_never_in_time(shelf: Library) -> None:
    with pytest.raises(SophiaError, match="no earlier version to go back to"):
        rollback(shelf.connection, "documents")
    old = serving_version(shelf.connection, "documents")
    new = built(shelf, shelf.with_index(template=NEW))
    promote(shelf.connection, new, STORE)
    position_to(shelf.connection, new, 1_000)
    with pytest.raises(BehindError):
        rollback(shelf.connection, "documents", patience=0.3)
    assert states(shelf.connection) == {1: "retiring", 2: "serving"}

    def catch_up() -> None:
        with shelf.database.connect("indexer") as connection:
            position_to(connection, old, 1_000)

    timer = threading.Timer(0.5, catch_up)
    timer.start()
    switch = rollback(shelf.connection, "documents")
    timer.join()
    assert (switch.before, switch.now) == (2, 1)
    assert served(shelf.connection) == {f"title {n}\n\ntext {n}" for n in range(10)}
    records = {record.version: record for record in version_records(shelf.connection, "documents")}
    assert records[1].superseded_at is None
    assert records[2].superseded_at is not None


def test_rollback_takes_the_version_that_stopped_last(shelf: Library) -> None:
    for number, template in ((2, NEW), (3, "{title}")):
        promote(shelf.connection, built(shelf, shelf.with_index(template=template)), STORE)
        assert serving_version(shelf.connection, "documents").number == number
    assert rollback(shelf.connection, "documents").now == 2
    # Back and forth: version 3 stopped last now.
    assert rollback(shelf.connection, "documents").now == 3


def test_live_changes_feed_both_versions_and_a_rollback_has_them(shelf: Library, run_loop: Callable[..., Any]) -> None:
    new = shelf.with_index(template=NEW)
    run_loop(shelf.indexer(new))
    old, version = (v for v in active_versions(shelf.connection))
    shelf.put(3, "title 3", "changed")
    shelf.delete(4)
    shelf.put(77, "t", "inserted")
    for each in (old, version):
        shelf.level(each)
    promote(shelf.connection, version, STORE, patience=60)
    shelf.put(78, "t", "after the switch")
    shelf.delete(5)
    shelf.level(version)
    switch = rollback(shelf.connection, "documents")
    assert switch.now == 1
    found = served(shelf.connection)
    assert "t\n\nafter the switch" in found
    assert not {"title 4\n\ntext 4", "title 5\n\ntext 5"} & found
    shelf.level(version)


# ---- death -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "switched"),
    [("promote.before_switch", False), ("promote.before_commit", False), ("promote.after_commit", True)],
)
def test_rule_a_switch_that_dies_is_whole_or_not_there(
    shelf: Library, kill_at: Callable[[str], None], point: str, switched: bool
) -> None:
    version = built(shelf, of_dimension(shelf, 128))
    kill_at(point)
    with shelf.database.connect("doomed") as doomed, pytest.raises(Killed):
        promote(doomed, version, STORE)
    failpoints.arm(None)
    assert states(shelf.connection) == ({1: "retiring", 2: "serving"} if switched else {1: "serving", 2: "building"})
    lengths = {row[0] for row in shelf.connection.execute("SELECT vector_dims(embedding) FROM indexes.documents")}
    assert lengths == {128 if switched else 384}
    assert promote(shelf.connection, version, STORE).switched is not switched


@pytest.mark.parametrize("point", ["retire.before_drop", "retire.after_drop"])
def test_rule_an_end_that_dies_is_whole_or_not_there(
    shelf: Library, kill_at: Callable[[str], None], point: str
) -> None:
    old = serving_version(shelf.connection, "documents")
    promote(shelf.connection, built(shelf, shelf.with_index(template=NEW)), STORE)
    kill_at(point)
    with shelf.database.connect("doomed") as doomed, pytest.raises(Killed):
        retire(doomed, old, STORE)
    failpoints.arm(None)
    there = shelf.connection.execute("SELECT to_regclass('indexes.documents_v1') IS NOT NULL").fetchone()
    ended = point == "retire.after_drop"
    assert there == (not ended,)
    assert states(shelf.connection) == ({2: "serving"} if ended else {1: "retiring", 2: "serving"})
    assert retire(shelf.connection, old, STORE) == 10
    assert ledger_rows(shelf.connection, old) == 0


def ledger_rows(connection: Connection, version: IndexVersion) -> int:
    row = connection.execute("SELECT count(*) FROM sophia.ledger WHERE version_id = %s", [version.id]).fetchone()
    return int(row[0]) if row else -1


# ---- the end of a version --------------------------------------------------------------------------------------


def test_the_serving_version_cannot_be_retired(shelf: Library) -> None:
    with pytest.raises(SophiaError, match="documents v1 serves"):
        retire(shelf.connection, serving_version(shelf.connection, "documents"), STORE)
    assert len(shelf.stored()) == 10


def test_a_retired_version_is_gone_and_can_be_built_again(shelf: Library) -> None:
    old = serving_version(shelf.connection, "documents")
    promote(shelf.connection, built(shelf, shelf.with_index(template=NEW)), STORE)
    assert retire(shelf.connection, old, STORE) == 10
    assert ledger_rows(shelf.connection, old) == 0
    assert shelf.connection.execute("SELECT to_regclass('indexes.documents_v1')").fetchone() == (None,)
    assert shelf.connection.execute("SELECT count(*) FROM sophia.shards").fetchone() == (2,)
    with pytest.raises(SophiaError, match="was retired"):
        promote(shelf.connection, old, STORE)
    assert [r.state for r in version_records(shelf.connection, "documents")] == ["serving", "retired"]
    again = built(shelf, shelf.catalog)
    assert (again.id, again.state) == (old.id, "building")
    assert promote(shelf.connection, again, STORE).switched
    assert shelf.faults(again) == []


def test_rule_a_retired_version_takes_its_writers_with_it(shelf: Library, run_loop: Callable[..., Any]) -> None:
    """The process that fed both goes on with the other one, and changes in the middle of the end harm nobody."""
    old = serving_version(shelf.connection, "documents")
    running = run_loop(shelf.indexer(shelf.with_index(template=NEW)))
    new = next(v for v in active_versions(shelf.connection) if v.id != old.id)
    shelf.level(new)
    promote(shelf.connection, new, STORE)
    for number in range(30):
        shelf.put(200 + number, "t", f"later {number}")
        if number == 10:
            retire(shelf.connection, old, STORE)
    shelf.level(new)
    assert not running.ended
    assert running.error is None


def test_a_table_that_people_read_directly_is_not_dropped(shelf: Library) -> None:
    old = serving_version(shelf.connection, "documents")
    promote(shelf.connection, built(shelf, shelf.with_index(template=NEW)), STORE)
    shelf.connection.execute("CREATE VIEW mine AS SELECT key FROM indexes.documents_v1")
    with pytest.raises(ConfigurationError, match="view mine depends on table"):
        retire(shelf.connection, old, STORE)
    assert states(shelf.connection) == {1: "retiring", 2: "serving"}


def test_retention_retires_what_stopped_serving_long_ago(shelf: Library) -> None:
    promote(shelf.connection, built(shelf, shelf.with_index(template=NEW)), STORE)
    assert apply_retention(shelf.connection, shelf.catalog.retention)["versions"] == 0
    days = shelf.catalog.retention.retire_after_days
    shelf.connection.execute(
        "UPDATE sophia.index_versions SET superseded_at = now() - make_interval(days => %s) WHERE number = 1",
        [days + 1],
    )
    assert apply_retention(shelf.connection, shelf.catalog.retention)["versions"] == 1
    assert states(shelf.connection) == {2: "serving"}
    with pytest.raises(SophiaError, match="no earlier version"):
        rollback(shelf.connection, "documents")


def test_retention_goes_on_when_a_version_serves_again_meanwhile(
    shelf: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = serving_version(shelf.connection, "documents")
    monkeypatch.setattr("sophia.retention.versions_over_time", lambda connection, days: [old.id])
    assert apply_retention(shelf.connection, shelf.catalog.retention)["versions"] == 0
    assert states(shelf.connection) == {1: "serving"}


def test_rule_3_a_repair_that_slept_does_not_mark_shards_of_a_version_begun_anew(shelf: Library) -> None:
    """It had compared its shard when the version was retired; the version is built again, and holds nothing yet."""
    old = serving_version(shelf.connection, "documents")
    promote(shelf.connection, built(shelf, shelf.with_index(template=NEW)), STORE)

    def retired_and_begun_anew(name: str) -> None:
        if name == "repair.before_done":
            failpoints.arm(None)
            with shelf.database.connect("another") as another:
                retire(another, old, STORE)
                STORE.ensure(another, ensure_version(another, shelf.catalog, shelf.index, "local"))

    failpoints.arm(retired_and_begun_anew)
    try:
        with pytest.raises(FencedError):
            repair_shard(shelf.connection, shelf.writer(old, lane="bulk"), 0, batch=100)
    finally:
        failpoints.arm(None)
    positions = shelf.connection.execute("SELECT position FROM sophia.shards WHERE version_id = %s", [old.id])
    assert {row[0] for row in positions} == {-1}


# ---- deletes and late writes while a version is built -----------------------------------------------------------


@pytest.mark.parametrize("order", ["late backfill", "backfill first", "live first"])
@pytest.mark.parametrize("change", ["delete", "update", "delete and insert"])
def test_rule_a_late_backfill_writes_nothing_old(shelf: Library, order: str, change: str) -> None:
    """For each order of backfill read, change, live write and backfill write, both versions are right."""
    old = serving_version(shelf.connection, "documents")
    new = shelf.version(shelf.with_index(template=NEW))
    read = shelf.rows(4, version=new)
    backfill = shelf.writer(new, lane="bulk")

    def alter() -> None:
        if change != "update":
            shelf.delete(4)
        if change != "delete":
            shelf.put(4, "title 4", "the newest")

    def live() -> None:
        for version in (old, new):
            shelf.apply(4, version=version)

    if order == "late backfill":
        alter()
        live()
        backfill.apply(shelf.connection, read)
    elif order == "backfill first":
        backfill.apply(shelf.connection, read)
        alter()
        live()
    else:
        alter()
        shelf.apply(4, version=new)
        backfill.apply(shelf.connection, read)
        shelf.apply(4, version=old)
    # Before the repair that fills the rest, which would mend this key, too.
    wanted = (
        {old.id: ["title 4\n\nthe newest"], new.id: ["the newest"]}
        if change != "delete"
        else {old.id: None, new.id: None}
    )
    assert {version.id: shelf.contents(version).get("[4]") for version in (old, new)} == wanted
    for shard in range(2):
        repair_shard(shelf.connection, backfill, shard, batch=10)
    for version in (old, new):
        assert shelf.faults(version) == []
        tombstone = shelf.connection.execute(
            "SELECT deleted FROM sophia.ledger WHERE version_id = %s AND key = '[4]'", [version.id]
        ).fetchone()
        assert tombstone == (change == "delete",)
    promote(shelf.connection, new, STORE)
    assert ("text 4" in served(shelf.connection)) is False
