"""`sophia load`: every format, and bad input of every kind leaves the database as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from psycopg.rows import TupleRow
from pyarrow import parquet

from tests.integration.cli.conftest import Sophia

Connection = psycopg.Connection[TupleRow]
ROWS = [{"id": 1, "title": "one", "body": "with, comma"}, {"id": 2, "title": "zwei", "body": "ümlaut\nand a line"}]


def _csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    import csv

    file = path / "rows.csv"
    with file.open("w", newline="", encoding="utf-8") as output:
        writer = csv.DictWriter(output, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return file


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def _parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    file = path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), file)
    return file


@pytest.mark.parametrize("write", [_csv, _jsonl, _parquet])
def test_a_file_becomes_a_table_and_replaces_its_rows(
    sophia_command: Sophia, connection: Connection, tmp_path: Path, write: Callable[..., Path]
) -> None:
    file = write(tmp_path, ROWS)
    done = sophia_command("load", str(file), "--table", "public.items", "--json")
    assert done.json == {"table": "public.items", "rows": 2, "created": True}
    rows = connection.execute("SELECT id, title, body FROM public.items ORDER BY id").fetchall()
    assert rows == [tuple(row.values()) for row in ROWS]

    file = write(tmp_path, [ROWS[0] | {"title": "uno"}, {"id": 3, "title": "three", "body": "new"}])
    assert sophia_command("load", str(file), "--table", "public.items", "--json").json["created"] is False
    assert connection.execute("SELECT id, title FROM public.items ORDER BY id").fetchall() == [
        (1, "uno"),
        (2, "zwei"),
        (3, "three"),
    ]


def test_types_of_a_parquet_file_are_kept(sophia_command: Sophia, connection: Connection, tmp_path: Path) -> None:
    row = {
        "id": 2**40,
        "price": Decimal("12.50"),
        "day": date(2026, 11, 21),
        "at": datetime(2026, 11, 21, 3, tzinfo=UTC),
        "tags": ["a", "b"],
        "extra": {"k": 1},
        "raw": b"\x00\xff",
        "flag": True,
        "ratio": 0.25,
        "nothing": None,
    }
    assert sophia_command("load", str(_parquet(tmp_path, [row])), "--table", "public.typed").code == 0
    (found,) = connection.execute("SELECT * FROM public.typed").fetchall()
    assert found == tuple(row.values())


def test_another_key_column_is_named(sophia_command: Sophia, connection: Connection, tmp_path: Path) -> None:
    file = _csv(tmp_path, [{"code": "a", "text": "x"}, {"code": "b", "text": "y"}])
    assert sophia_command("load", str(file), "--table", "public.codes", "--key", "code").code == 0
    key = connection.execute("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'codes'::regclass")
    assert ("PRIMARY KEY (code)",) in key.fetchall()


def test_a_column_of_the_last_line_is_a_column_too(
    sophia_command: Sophia, connection: Connection, tmp_path: Path
) -> None:
    file = _jsonl(tmp_path, [{"id": 1}, {"id": 2, "late": "here"}])
    assert sophia_command("load", str(file), "--table", "public.late").code == 0
    assert connection.execute("SELECT id, late FROM public.late ORDER BY id").fetchall() == [(1, None), (2, "here")]


BAD: dict[str, tuple[str, bytes, str]] = {
    "invalid UTF-8": ("rows.csv", b"id,title\n1,good\n2,\xff\xfe\n", "rows.csv"),
    "ragged CSV": ("rows.csv", b"id,title\n1,good\n2,too,many\n", "rows.csv"),
    "a type that changes": (
        "rows.csv",
        b"id,title\n" + b"".join(b"%d,x\n" % n for n in range(300_000)) + b"no,x\n",
        "row",
    ),
    "no key column": ("rows.csv", b"number,title\n1,x\n", "--key"),
    "a key twice": ("rows.csv", b"id,title\n1,x\n1,y\n", "rows.csv"),
    "a NULL key": ("rows.jsonl", b'{"id": 1, "title": "x"}\n{"id": null, "title": "y"}\n', "rows.jsonl"),
    "broken JSON": ("rows.jsonl", b'{"id": 1}\n{"id": \n', "rows.jsonl"),
    "an empty CSV": ("rows.csv", b"", "rows.csv"),
    "an empty JSONL": ("rows.jsonl", b"", "rows.jsonl"),
    "an empty Parquet": ("rows.parquet", b"", "rows.parquet"),
    "not Parquet": ("rows.parquet", b"id,title\n1,x\n", "rows.parquet"),
    "no known suffix": ("rows.xlsx", b"x", ".xlsx"),
    "a column twice": ("rows.csv", b"id,title,title\n1,a,b\n", "title"),
    "a NUL in a text": ("rows.jsonl", b'{"id": 1, "title": "a\\u0000b"}\n', "rows.jsonl"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_2_and_loads_nothing(
    sophia_command: Sophia, connection: Connection, tmp_path: Path, case: str
) -> None:
    name, content, message = BAD[case]
    (tmp_path / name).write_bytes(content)
    done = sophia_command("load", str(tmp_path / name), "--table", "public.items")
    assert done.code == 2, done.out + done.err
    assert message in done.err
    assert "Traceback" not in done.err
    assert connection.execute("SELECT to_regclass('public.items')").fetchone() == (None,)


@pytest.mark.parametrize("case", ["invalid UTF-8", "ragged CSV", "a key twice", "a NULL key", "broken JSON"])
def test_bad_input_leaves_a_table_as_it_was(
    sophia_command: Sophia, connection: Connection, tmp_path: Path, case: str
) -> None:
    connection.execute("CREATE TABLE public.items (id bigint PRIMARY KEY, title text)")
    connection.execute("INSERT INTO public.items VALUES (1, 'before')")
    name, content, _ = BAD[case]
    (tmp_path / name).write_bytes(content)
    assert sophia_command("load", str(tmp_path / name), "--table", "public.items").code == 2
    assert connection.execute("SELECT * FROM public.items").fetchall() == [(1, "before")]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("sophia.documents", "the platform's own"),
        ("indexes.documents", "the platform's own"),
        ("pg_catalog.pg_class", "the platform's own"),
        ("public.items; DROP TABLE x", "is no table name"),
        ("nowhere.items", "nowhere"),
    ],
)
def test_some_tables_are_refused(sophia_command: Sophia, tmp_path: Path, table: str, message: str) -> None:
    done = sophia_command("load", str(_csv(tmp_path, ROWS)), "--table", table)
    assert done.code == 2
    assert message in done.err


def test_a_table_without_a_primary_key_is_refused(
    sophia_command: Sophia, connection: Connection, tmp_path: Path
) -> None:
    connection.execute("CREATE TABLE public.items (id bigint, title text, body text)")
    done = sophia_command("load", str(_csv(tmp_path, ROWS)), "--table", "public.items")
    assert done.code == 2
    assert "primary key" in done.err.lower()
    assert connection.execute("SELECT count(*) FROM public.items").fetchone() == (0,)


def test_a_column_that_the_table_lacks_is_named(sophia_command: Sophia, connection: Connection, tmp_path: Path) -> None:
    connection.execute("CREATE TABLE public.items (id bigint PRIMARY KEY, title text)")
    done = sophia_command("load", str(_csv(tmp_path, ROWS)), "--table", "public.items")
    assert done.code == 2
    assert "body" in done.err


def test_a_file_that_is_not_there_is_named(sophia_command: Sophia, tmp_path: Path) -> None:
    done = sophia_command("load", str(tmp_path / "no.csv"), "--table", "public.items")
    assert (done.code, "no.csv: does not exist" in done.err) == (2, True)
