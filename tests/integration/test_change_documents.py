"""Change documents from what a real server sends: pgoutput messages, decoded and assembled without a socket."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia.capture import assembler as assembler_module
from sophia.capture import pgoutput, snapshot
from sophia.capture.assembler import Assembler, CapturedTable, Taken
from sophia.capture.source import columns, inspect_table
from sophia.capture.values import SESSION_OPTIONS
from sophia.database import Database
from sophia.database.connect import connect
from sophia.documents import Change, Clock, capture_uuid, parse_lsn
from sophia.inbox import WHOLE_ROW, Floor

Connection = psycopg.Connection[TupleRow]
BIG = "".join(chr(33 + (i * i * 7 + i) % 90) for i in range(20_000))


class Log:
    """A slot on the test's database whose messages are read by SQL."""

    def __init__(self, connection: Connection, slot: str) -> None:
        self.connection = connection
        self.slot = slot
        self.start = 0

    def open(self, *tables: str) -> None:
        """Publish the tables and begin to keep their changes."""
        self.connection.execute(f"CREATE PUBLICATION p FOR TABLE {', '.join(tables)} WITH (publish_via_partition_root)")
        row = self.connection.execute(
            "SELECT lsn::text FROM pg_create_logical_replication_slot(%s, 'pgoutput')", [self.slot]
        ).fetchone()
        assert row is not None
        self.start = parse_lsn(row[0])

    def payloads(self) -> list[tuple[int, bytes]]:
        """(log position, message) of everything since `open`."""
        rows = self.connection.execute(
            "SELECT lsn::text, data FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, "
            "'proto_version', '1', 'publication_names', 'p')",
            [self.slot],
        )
        return [(parse_lsn(lsn), bytes(data)) for lsn, data in rows]

    def messages(self) -> list[pgoutput.Message]:
        return [m for _, data in self.payloads() if (m := pgoutput.decode(data)) is not None]

    def tables(self, *names: str) -> dict[int, CapturedTable]:
        found = [inspect_table(self.connection, name) for name in names]
        return {t.oid: CapturedTable(t.oid, t.schema, t.name, t.name, t.key_fields, 2) for t in found}

    def taken(self, *names: str, start: int | None = None, bulk: int = 1000) -> Taken:
        assembler = Assembler(self.tables(*names), self.start if start is None else start, bulk)
        for lsn, data in self.payloads():
            assembler.feed(data, lsn)
        return assembler.take()


@pytest.fixture
def log(database: Database) -> Iterator[Log]:
    with connect(database.url, "sophia-test", options=SESSION_OPTIONS) as connection:
        yield Log(connection, "log_" + database.url.rsplit("/", 1)[-1].split("?")[0])


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every change document that is made, whole, as it would be sent."""
    documents: list[dict[str, Any]] = []
    read = assembler_module.from_document

    def record(document: dict[str, Any], *args: Any, **options: Any) -> Change:
        documents.append(json.loads(json.dumps(document)))
        return read(document, *args, **options)

    monkeypatch.setattr(assembler_module, "from_document", record)
    return documents


# ---- the decoder -------------------------------------------------------------------------------------------


def test_decoder_reads_every_kind_of_message(log: Log) -> None:
    log.connection.execute("CREATE TABLE t (id int PRIMARY KEY, body text, big text)")
    log.connection.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    log.open("t")
    with log.connection.transaction():
        log.connection.execute("INSERT INTO t VALUES (1, NULL, %s)", [BIG])
        log.connection.execute("UPDATE t SET body = 'ü'")
        log.connection.execute("UPDATE t SET id = 2")
        log.connection.execute("DELETE FROM t")
        log.connection.execute("TRUNCATE t")
    begin, relation, insert, update, moved, delete, *again, truncate, commit = log.messages()
    # The server may describe a table again at any time.
    assert [m for m in again if m != relation] == []
    assert isinstance(begin, pgoutput.Begin)
    assert isinstance(relation, pgoutput.Relation)
    assert (relation.schema, relation.table, relation.replica_identity) == ("public", "t", "d")
    assert [(c.name, c.type_oid, c.is_key) for c in relation.columns] == [
        ("id", 23, True),
        ("body", 25, False),
        ("big", 25, False),
    ]
    oid = relation.oid
    assert insert == pgoutput.Insert(oid, [b"1", None, BIG.encode()])
    assert update == pgoutput.Update(oid, None, None, [b"1", "ü".encode(), pgoutput.UNCHANGED])
    assert moved == pgoutput.Update(oid, "K", [b"1", None, None], [b"2", "ü".encode(), pgoutput.UNCHANGED])
    assert delete == pgoutput.Delete(oid, "K", [b"2", None, None])
    assert truncate == pgoutput.Truncate((oid,))
    assert isinstance(commit, pgoutput.Commit)
    assert begin.final_lsn == commit.lsn < commit.end_lsn
    row = log.connection.execute("SELECT pg_xact_commit_timestamp(NULL), txid_current()").fetchone()
    assert row is not None
    assert 0 < begin.xid < row[1]


def test_decoder_reads_the_old_row_under_full_identity(log: Log) -> None:
    log.connection.execute("CREATE TABLE t (id int PRIMARY KEY, body text); ALTER TABLE t REPLICA IDENTITY FULL")
    log.open("t")
    log.connection.execute("INSERT INTO t VALUES (1, 'a')")
    log.connection.execute("UPDATE t SET body = 'b'")
    log.connection.execute("DELETE FROM t")
    changes = [m for m in log.messages() if isinstance(m, pgoutput.Update | pgoutput.Delete)]
    assert [(m.old_kind, m.old) for m in changes] == [("O", [b"1", b"a"]), ("O", [b"1", b"b"])]


def test_decoder_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="unknown replication message"):
        pgoutput.decode(b"Z123")
    assert pgoutput.decode(b"O" + bytes(12)) is None


# ---- documents ---------------------------------------------------------------------------------------------


def test_streamed_documents_are_estuarys_field_for_field(log: Log, recorded: list[dict[str, Any]]) -> None:
    log.connection.execute("CREATE SCHEMA test; CREATE TABLE test.t (id int PRIMARY KEY, data text)")
    log.open("test.t")
    log.connection.execute("INSERT INTO test.t VALUES (1, 'one')")
    log.connection.execute("UPDATE test.t SET data = 'uno'")
    log.connection.execute("UPDATE test.t SET id = 5")
    log.connection.execute("DELETE FROM test.t")
    log.taken("test.t")
    assert [list(document) for document in recorded] == [["_meta", "data", "id"]] * 3 + [["_meta", "id"]]
    metas = [document["_meta"] for document in recorded]
    assert [list(meta) for meta in metas] == [
        ["op", "source", "uuid"],
        ["op", "source", "uuid"],
        ["op", "source", "before", "uuid"],
        ["op", "source", "uuid"],
    ]
    assert [meta["op"] for meta in metas] == ["c", "u", "u", "d"]
    assert metas[2]["before"] == {"id": 1}
    assert {key: value for key, value in recorded[2].items() if key != "_meta"} == {"data": "one", "id": 5} | {
        "data": "uno"
    }
    begins = [m for m in log.messages() if isinstance(m, pgoutput.Begin)]
    commits = [m for m in log.messages() if isinstance(m, pgoutput.Commit)]
    ends = [log.start, *[c.end_lsn for c in commits]]
    for number, (meta, begin) in enumerate(zip(metas, begins, strict=True)):
        source = meta["source"]
        assert list(source) == ["ts_ms", "schema", "table", "loc", "txid"]
        assert (source["schema"], source["table"], source["txid"]) == ("test", "t", begin.xid)
        assert source["ts_ms"] == int(begin.committed_at.timestamp() * 1000)
        assert source["loc"][0] == ends[number]
        assert source["loc"][2] == begin.final_lsn
        assert source["loc"][0] <= source["loc"][1] <= source["loc"][2]
        assert meta["uuid"] == capture_uuid(begin.final_lsn, 1)
    locs = [meta["source"]["loc"] for meta in metas]
    assert locs == sorted(locs)


def test_locations_and_clocks_ascend_within_a_transaction(log: Log, recorded: list[dict[str, Any]]) -> None:
    log.connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
    log.open("t")
    log.connection.execute("INSERT INTO t SELECT generate_series(1, 20)")
    events = log.taken("t").events["t"]
    locs = [document["_meta"]["source"]["loc"] for document in recorded]
    assert all(a < b for a, b in itertools.pairwise(locs))
    assert [event.clock for event in events] == [Clock(2, locs[0][2], n) for n in range(1, 21)]


def test_full_identity_gives_before_and_whole_deletes(log: Log, recorded: list[dict[str, Any]]) -> None:
    log.connection.execute("CREATE TABLE t (id int PRIMARY KEY, a text, big text); ALTER TABLE t REPLICA IDENTITY FULL")
    log.connection.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    log.open("t")
    log.connection.execute("INSERT INTO t VALUES (1, 'x', %s)", [BIG])
    log.connection.execute("UPDATE t SET a = NULL")
    log.connection.execute("DELETE FROM t")
    taken = log.taken("t")
    _, update, delete = recorded
    assert update["_meta"]["before"] == {"id": 1, "a": "x", "big": BIG}
    assert (update["a"], update["big"]) == (None, BIG), "FULL fills an unchanged column from the old row"
    assert {k: v for k, v in delete.items() if k != "_meta"} == {"id": 1, "a": None, "big": BIG}
    assert "before" not in delete["_meta"]
    assert all(isinstance(e, Change) and e.complete and e.before_key is None for e in taken.events["t"])


def test_delete_under_default_identity_holds_the_key_alone(log: Log, recorded: list[dict[str, Any]]) -> None:
    log.connection.execute("CREATE TABLE t (b text, id int, n text, PRIMARY KEY (id, b))")
    log.open("t")
    log.connection.execute("INSERT INTO t VALUES ('x', 1, 'y')")
    log.connection.execute("DELETE FROM t")
    taken = log.taken("t")
    assert {k: v for k, v in recorded[1].items() if k != "_meta"} == {"b": "x", "id": 1}
    assert [e.key for e in taken.events["t"] if isinstance(e, Change)] == ['[1,"x"]'] * 2


def test_unchanged_toast_column_is_absent_and_named(log: Log, recorded: list[dict[str, Any]]) -> None:
    log.connection.execute("CREATE TABLE t (id int PRIMARY KEY, a text, big text)")
    log.connection.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    log.open("t")
    log.connection.execute("INSERT INTO t VALUES (1, 'x', %s)", [BIG])
    log.connection.execute("UPDATE t SET a = 'y'")
    events = log.taken("t").events["t"]
    assert "big" not in recorded[1]
    assert [(e.complete, e.missing) for e in events if isinstance(e, Change)] == [(True, ()), (False, ("big",))]


def test_truncate_is_a_floor_and_no_document(log: Log, recorded: list[dict[str, Any]]) -> None:
    log.connection.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)")
    log.open("t", "other")
    with log.connection.transaction():
        log.connection.execute("INSERT INTO t VALUES (1)")
        log.connection.execute("TRUNCATE t, other")
    taken = log.taken("t", "other")
    _insert, floor = taken.events["t"]
    assert isinstance(floor, Floor)
    assert floor.clock.ordinal == 2
    assert [type(e) for e in taken.events["other"]] == [Floor]
    assert len(recorded) == 1


def test_rolled_back_work_is_not_sent(log: Log) -> None:
    log.connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
    log.open("t")
    with log.connection.transaction(force_rollback=True):
        log.connection.execute("INSERT INTO t VALUES (1)")
    with log.connection.transaction():
        log.connection.execute("INSERT INTO t VALUES (2)")
        with log.connection.transaction(force_rollback=True):
            log.connection.execute("INSERT INTO t VALUES (3)")
        with log.connection.transaction():
            log.connection.execute("INSERT INTO t VALUES (4)")
    assert [e.key for e in log.taken("t").events["t"] if isinstance(e, Change)] == ["[2]", "[4]"]


def test_long_transaction_is_ordered_by_its_commit(log: Log, database: Database) -> None:
    log.connection.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    log.open("t")
    with database.connect() as long, long.transaction():
        long.execute("INSERT INTO t VALUES (1, 'early')")
        log.connection.execute("INSERT INTO t VALUES (2, 'quick')")
        long.execute("INSERT INTO t VALUES (3, 'late')")
    events = log.taken("t").events["t"]
    assert [e.key for e in events if isinstance(e, Change)] == ["[2]", "[1]", "[3]"]
    clocks = [e.clock for e in events]
    assert clocks == sorted(clocks)
    assert clocks[1].position == clocks[2].position > clocks[0].position


def test_replica_identity_index_gives_the_key(log: Log, recorded: list[dict[str, Any]]) -> None:
    log.connection.execute("CREATE TABLE t (a int NOT NULL, b text NOT NULL, v text)")
    log.connection.execute("CREATE UNIQUE INDEX t_b ON t (b); ALTER TABLE t REPLICA IDENTITY USING INDEX t_b")
    log.open("t")
    log.connection.execute("INSERT INTO t VALUES (1, 'x', 'v')")
    log.connection.execute("UPDATE t SET b = 'y'")
    log.connection.execute("DELETE FROM t")
    events = [e for e in log.taken("t").events["t"] if isinstance(e, Change)]
    assert [(e.op, e.key, e.before_key) for e in events] == [
        ("c", '["x"]', None),
        ("u", '["y"]', '["x"]'),
        ("d", '["y"]', None),
    ]
    assert recorded[1]["_meta"]["before"] == {"b": "x"}


def test_generated_columns_are_in_neither_path(log: Log) -> None:
    log.connection.execute("CREATE TABLE t (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED)")
    log.open("t")
    log.connection.execute("INSERT INTO t VALUES (1, 2)")
    (event,) = log.taken("t").events["t"]
    assert isinstance(event, Change)
    assert event.body == {"id": 1, "a": 2}
    table = inspect_table(log.connection, "public.t")
    assert [name for name, _ in columns(log.connection, table.oid)] == ["id", "a"]


def test_what_was_captured_before_is_skipped(log: Log) -> None:
    log.connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
    log.open("t")
    log.connection.execute("INSERT INTO t VALUES (1)")
    first = log.taken("t").end_lsn
    log.connection.execute("INSERT INTO t VALUES (2)")
    taken = log.taken("t", start=first)
    assert [e.key for e in taken.events["t"] if isinstance(e, Change)] == ["[2]"]
    assert taken.end_lsn is not None
    assert first is not None
    assert taken.end_lsn > first


def test_replay_of_a_log_has_the_same_clocks_and_ids(log: Log, recorded: list[dict[str, Any]]) -> None:
    log.connection.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)")
    log.open("t", "other")
    with log.connection.transaction():
        log.connection.execute("INSERT INTO other VALUES (1)")
        log.connection.execute("INSERT INTO t VALUES (1)")
    first = log.taken("t").events["t"]
    again = log.taken("t", "other").events["t"]
    assert first == again, "whether another table is captured changes no clock"
    assert recorded[0]["_meta"]["uuid"] == recorded[2]["_meta"]["uuid"]


def test_large_transaction_takes_the_bulk_lane_whole(log: Log) -> None:
    log.connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
    log.open("t")
    log.connection.execute("INSERT INTO t VALUES (0)")
    log.connection.execute("INSERT INTO t SELECT generate_series(1, 6)")
    events = log.taken("t", bulk=5).events["t"]
    assert [e.bulk for e in events if isinstance(e, Change)] == [False] + [True] * 6
    events = log.taken("t", bulk=6).events["t"]
    assert not any(e.bulk for e in events if isinstance(e, Change))


def test_open_transaction_can_be_taken_in_parts(log: Log) -> None:
    log.connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
    log.open("t")
    log.connection.execute("INSERT INTO t SELECT generate_series(1, 4)")
    whole = log.taken("t", bulk=1)
    assembler = Assembler(log.tables("t"), log.start, 1)
    parts: list[Taken] = []
    for lsn, data in log.payloads():
        assembler.feed(data, lsn)
        if assembler.size >= 2:
            parts.append(assembler.take(whole=False))
    parts.append(assembler.take())
    assert [part.end_lsn for part in parts[:-1]] == [None] * (len(parts) - 1), (
        "nothing to acknowledge before the commit"
    )
    assert parts[-1].end_lsn == whole.end_lsn
    assert [e for part in parts for e in part.events["t"]] == whole.events["t"]


def test_unreadable_change_is_parked_and_marks_its_key(log: Log) -> None:
    """bytea in a text column cannot come from a UTF-8 server; the decoder meets it all the same."""
    log.connection.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    log.open("t")
    log.connection.execute("INSERT INTO t VALUES (1, 'poison')")
    assembler = Assembler(log.tables("t"), log.start, 1000)
    for lsn, data in log.payloads():
        assembler.feed(data.replace(b"poison", b"\xff\xfe\xff\xfe\xff\xfe"), lsn)
    taken = assembler.take()
    (event,) = taken.events["t"]
    assert isinstance(event, Change)
    assert (event.key, event.complete, event.missing) == ("[1]", False, (WHOLE_ROW,))
    (parked,) = taken.parked
    assert parked.key == "[1]"
    assert "not UTF-8" in parked.reason


# ---- values ------------------------------------------------------------------------------------------------

VALUES: list[tuple[str, str, Any]] = [
    ("smallint", "-5", -5),
    ("integer", "2147483647", 2147483647),
    ("bigint", "9223372036854775807", 9223372036854775807),
    ("numeric", "12.3400", "12.3400"),
    ("numeric", "'1e30'", "1" + "0" * 30),
    ("numeric", "'NaN'", "NaN"),
    ("numeric", "'-Infinity'", "-Infinity"),
    ("real", "0.1", 0.1),
    ("double precision", "1e300", 1e300),
    ("double precision", "'NaN'", "NaN"),
    ("double precision", "'Infinity'", "Infinity"),
    ("double precision", "'-Infinity'", "-Infinity"),
    ("boolean", "true", True),
    ("text", "'ü🦎'", "ü🦎"),
    ("text", "''", ""),
    ("varchar(5)", "'abc'", "abc"),
    ("char(5)", "'abc'", "abc  "),
    ("date", "'2026-02-03'", "2026-02-03"),
    ("date", "'infinity'", "infinity"),
    ("date", "'0044-03-15 BC'", "0044-03-15 BC"),
    ("time", "'12:34:56.789'", "12:34:56.789000"),
    ("time", "'24:00'", "24:00:00"),
    ("timestamptz", "'2026-02-03 04:05:06.5+02'", "2026-02-03T02:05:06.500000Z"),
    ("timestamptz", "'2026-02-03 04:05:06+00'", "2026-02-03T04:05:06Z"),
    ("timestamptz", "'infinity'", "infinity"),
    ("timestamptz", "'-infinity'", "-infinity"),
    ("timestamptz", "'20000-01-01 00:00+00'", "20000-01-01 00:00:00+00"),
    ("timestamp", "'2026-02-03 04:05:06'", "2026-02-03T04:05:06Z"),
    ("interval", "'1 year 2 days 03:04:05'", "P1Y2DT3H4M5S"),
    ("bytea", r"'\x00ff10'", "AP8Q"),
    ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("jsonb", """'{"a": [1, null, "x"]}'""", {"a": [1, None, "x"]}),
    ("json", "'[1.5, true]'", [1.5, True]),
    ("json", "'null'", None),
    ("json", r"""'["a\u0000b", "\ud800", 1e400, {"\u0000": 1}]'""", ["a\ufffdb", "\ufffd", "Infinity", {"\ufffd": 1}]),
    ("interval[]", "'{1 day}'", ["P1D"]),
    ("date[]", "'{infinity}'", "{infinity}"),
    ("integer[]", "'{1,NULL,3}'", [1, None, 3]),
    ("integer[]", "'{{1,2},{3,4}}'", [[1, 2], [3, 4]]),
    ("text[]", """'{"a,b",NULL,""}'""", ["a,b", None, ""]),
    ("numeric[]", "'{1.50,NaN}'", ["1.50", "NaN"]),
    ("timestamptz[]", "'{2026-02-03 04:05:06+00}'", ["2026-02-03T04:05:06Z"]),
    ("inet", "'192.168.0.1'", "192.168.0.1"),
    ("int4range", "'[1,10)'", "[1,10)"),
    ("money", "'12.34'", "$12.34"),
    ("bit(3)", "'101'", "101"),
    ("point", "'(1,2)'", "(1,2)"),
    ("mood", "'sad'", "sad"),
    ("mood[]", "'{sad}'", "{sad}"),
    ("positive", "5", "5"),
]


@pytest.mark.parametrize(("sql_type", "literal", "expected"), VALUES, ids=[f"{t} {v}" for t, v, _ in VALUES])
def test_value_mapping_is_the_same_in_snapshot_and_stream(
    values_log: tuple[Log, dict[int, tuple[Any, Any]]], sql_type: str, literal: str, expected: Any
) -> None:
    _, found = values_log
    streamed, copied = found[VALUES.index((sql_type, literal, expected))]
    assert streamed == copied == expected
    assert json.loads(json.dumps(streamed, allow_nan=False)) == expected


@pytest.fixture(scope="module")
def values_log(server: Any, template: str) -> Iterator[tuple[Log, dict[int, tuple[Any, Any]]]]:
    """One table with a column for each value; its one row streamed and copied."""
    from tests.conftest import drop_database

    with connect(server.url(), "sophia-test") as maintenance:
        maintenance.execute("CREATE DATABASE values_test")
        try:
            with connect(server.url("values_test"), "sophia-test", options=SESSION_OPTIONS) as connection:
                connection.execute("CREATE TYPE mood AS ENUM ('sad'); CREATE DOMAIN positive AS int CHECK (value > 0)")
                described = ", ".join(f"c{n} {t}" for n, (t, _, _) in enumerate(VALUES))
                connection.execute(f"CREATE TABLE t (id int PRIMARY KEY, {described}, nothing text)")
                log = Log(connection, "log_values")
                log.open("t")
                connection.execute(f"INSERT INTO t VALUES (1, {', '.join(v for _, v, _ in VALUES)}, NULL)")
                (event,) = log.taken("t").events["t"]
                assert isinstance(event, Change)
                assert event.body is not None
                table = inspect_table(connection, "public.t")
                (copied,) = snapshot.read_rows(connection, table.schema, table.name, columns(connection, table.oid))
                assert event.body["nothing"] is copied["nothing"] is None
                yield log, {n: (event.body[f"c{n}"], copied[f"c{n}"]) for n in range(len(VALUES))}
        finally:
            drop_database(maintenance, "values_test")
