"""Random SQL from a seed, over two connections: what applications do to tables, and what they should not.

A statement may fail (the server is killed beneath it, a key is taken): only rows of committed transactions are
counted. What was committed is known to the oracle from the tables themselves.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from tests.chaos.tables import BY_NAME, TABLES, Table

Connection = psycopg.Connection[Any]
Rows = int
WORDS = ("amber", "basalt", "cedar", "delta", "ember", "fjord", "garnet", "hazel", "indigo", "Müller", "東京", "café")
KEYS = 500
# A text of each bulk statement; `g` is a number that differs from row to row.
_TEXT = {
    "short": "'row ' || g || ' of ' || %(seed)s::text",
    "repeated": "'one of ' || (g %% 7) || ' texts'",
    "long": "(SELECT string_agg('Line ' || n || ' of ' || g || ' in ' || %(seed)s::text || '.', ' ') "
    "FROM generate_series(1, 12 + g %% 9) n)",
    "random": "(SELECT string_agg(md5(concat(g, %(seed)s::text, n)), ' ') FROM generate_series(1, 8) n)",
}
_PADDING = "(SELECT string_agg(md5(concat(g, n, %(seed)s::text)), '') FROM generate_series(1, 70) n)"


def create(connection: Connection, table: Table) -> None:
    """Create a table, or drop it and create it anew, in one transaction."""
    with connection.transaction():
        connection.execute("CREATE SCHEMA IF NOT EXISTS app")
        connection.execute(f"DROP TABLE IF EXISTS {table.qualified}")
        for statement in table.create.split("; "):
            connection.execute(statement)


class Workload:
    """Two threads that change rows until stopped.

    Attributes:
        changes: rows inserted, updated and deleted by transactions whose commit was answered.
        statements: how often each kind of work was committed.
    """

    def __init__(self, url: str, seed: str, *, bulk: float = 0.15) -> None:
        self._url = url
        self._seed = seed
        self._bulk = bulk
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.changes = 0
        self.statements: dict[str, int] = {}
        self._threads = [
            threading.Thread(target=self._run, args=(loop, f"{seed}/{number}"), daemon=True)
            for number, loop in enumerate((self._mixed, self._late))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let both finish what they do."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "the workload hangs"

    def _run(self, loop: Callable[[Connection, random.Random], None], seed: str) -> None:
        rng = random.Random(seed)
        while not self._stop.is_set():
            with contextlib.suppress(psycopg.OperationalError), self._connect() as connection:
                while not self._stop.is_set():
                    try:
                        loop(connection, rng)
                    except (psycopg.IntegrityError, psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable):
                        pass
                    except (psycopg.errors.DeadlockDetected, psycopg.errors.UndefinedColumn):
                        pass
                    except psycopg.Rollback:
                        # It gets out only when the rollback met a dead connection.
                        break
                    self._stop.wait(rng.choice((0, 0.005, 0.02, 0.05)))
            self._stop.wait(0.05)

    @contextlib.contextmanager
    def _connect(self) -> Iterator[Connection]:
        with psycopg.connect(self._url, autocommit=True, application_name="chaos-workload") as connection:
            connection.execute("SET statement_timeout = '20s'")
            connection.execute("SET lock_timeout = '2s'")
            yield connection

    def _done(self, kind: str, rows: int) -> None:
        with self._lock:
            self.changes += rows
            self.statements[kind] = self.statements.get(kind, 0) + 1

    def _mixed(self, connection: Connection, rng: random.Random) -> None:
        kinds = BULK if rng.random() < self._bulk else SMALL
        kind = rng.choice(kinds)
        table = rng.choice(TABLES)
        if kind is storm:
            for _ in range(rng.randint(3, 12)):
                self._done("storm", storm(Statements(connection, table, rng)))
                if self._stop.is_set():
                    return
            return
        if kind in (hot_row, flapping):
            # Many transactions on one key.
            statement = Statements(connection, table, rng)
            key = statement.key()
            for _ in range(rng.randint(5, 50)):
                self._done(kind.__name__, kind(statement, key))
                if self._stop.is_set():
                    return
            return
        with connection.transaction() as transaction:
            rows = kind(Statements(connection, table, rng))
            if rng.random() < 0.1:
                kind, rows = _rolled_back, 0
                raise psycopg.Rollback(transaction)
        self._done(kind.__name__.strip("_"), rows)

    def _late(self, connection: Connection, rng: random.Random) -> None:
        """A transaction that begins early and commits late, while the other connection goes on."""
        with connection.transaction():
            rows = 0
            for _ in range(rng.randint(1, 5)):
                rows += update_text(Statements(connection, rng.choice(TABLES), rng))
                if self._stop.wait(rng.uniform(0.02, 0.3)):
                    break
        self._done("late_commit", rows)


class Statements:
    """Statements on one table, their values from a random generator. Each returns the rows that it changed."""

    def __init__(self, connection: Connection, table: Table, rng: random.Random) -> None:
        self.connection = connection
        self.table = table
        self.rng = rng

    def key(self) -> tuple[Any, ...]:
        """A key, present or not."""
        number = self.rng.randrange(KEYS)
        return {
            "notes": (number,),
            "articles": (("de", "en", "日本")[number % 3], f'slug-{number} "q"'),
            "logs": (f"log/{number}",),
            "parts": (number % 4, number),
        }[self.table.name]

    def text(self) -> str | None:
        """A text: short, repeated elsewhere, several chunks long, empty or null."""
        form = self.rng.random()
        if form < 0.05:
            return self.rng.choice((None, "", "  "))
        if form < 0.2:
            return f"one of {self.rng.randrange(7)} texts"
        length = self.rng.randint(60, 200) if form > 0.9 else self.rng.randint(1, 12)
        words = [f"{self.rng.choice(WORDS)}{self.rng.choice(('', '', '.', ','))}" for _ in range(length)]
        return " ".join([*words, str(self.rng.randrange(10**6))])

    def execute(self, statement: str, *values: Any) -> Rows:
        cursor = self.connection.execute(statement, values)
        return max(0, cursor.rowcount)

    @property
    def where(self) -> str:
        return " AND ".join(f"{name} = %s" for name in self.table.key)

    def insert(self, key: tuple[Any, ...]) -> Rows:
        values: dict[str, Any] = dict(zip(self.table.key, key, strict=True))
        values |= {name: self.text() for name in self.table.texts}
        values[self.table.number] = self.rng.randrange(100)
        if self.table.name == "articles":
            values["padding"] = self.rng.randbytes(1_200).hex()
        names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
        return self.execute(
            f"INSERT INTO {self.table.qualified} ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING", *values.values()
        )

    def update(self, column: str, value: Any, key: tuple[Any, ...]) -> Rows:
        return self.execute(f"UPDATE {self.table.qualified} SET {column} = %s WHERE {self.where}", value, *key)

    def delete(self, key: tuple[Any, ...]) -> Rows:
        return self.execute(f"DELETE FROM {self.table.qualified} WHERE {self.where}", *key)

    def move(self, old: tuple[Any, ...], new: tuple[Any, ...]) -> Rows:
        """Change a key, unless the new one is taken."""
        free = " AND ".join(f"{name} = %s" for name in self.table.key)
        assignments = ", ".join(f"{name} = %s" for name in self.table.key)
        return self.execute(
            f"UPDATE {self.table.qualified} SET {assignments} WHERE {self.where} "
            f"AND NOT EXISTS (SELECT 1 FROM {self.table.qualified} WHERE {free})",
            *new,
            *old,
            *new,
        )

    def bulk(self, statement: str) -> Rows:
        """A statement over many rows; `seed` makes its texts differ from those of another."""
        return max(0, self.connection.execute(statement, {"seed": str(self.rng.randrange(10**9))}).rowcount)


# ---- small work: a few rows a transaction ---------------------------------------------------------------------


def insert(s: Statements) -> Rows:
    return sum(s.insert(s.key()) for _ in range(s.rng.randint(1, 4)))


def update_text(s: Statements) -> Rows:
    return s.update(s.rng.choice(s.table.texts), s.text(), s.key())


def update_number(s: Statements) -> Rows:
    return sum(s.update(s.table.number, s.rng.randrange(100), s.key()) for _ in range(s.rng.randint(1, 5)))


def update_unused(s: Statements) -> Rows:
    return s.update("unused", s.rng.randrange(100), s.key())


def update_nothing(s: Statements) -> Rows:
    name = s.table.texts[0]
    return s.execute(f"UPDATE {s.table.qualified} SET {name} = {name} WHERE {s.where}", *s.key())


def delete(s: Statements) -> Rows:
    return s.delete(s.key())


def move(s: Statements) -> Rows:
    return s.move(s.key(), s.key())


def move_and_refill(s: Statements) -> Rows:
    """1 becomes 5, and a new 1 comes, in one transaction."""
    old = s.key()
    return s.move(old, s.key()) + s.insert(old)


def swap(s: Statements) -> Rows:
    """Two rows change their keys with each other, over a third."""
    one, two = s.key(), s.key()
    between = {"notes": (-1,), "articles": ("xx", "-"), "logs": ("-",), "parts": (9, -1)}[s.table.name]
    return s.move(one, between) + s.move(two, one) + s.move(between, two)


def move_and_update(s: Statements) -> Rows:
    """A key change with changes before and after it, and one of a column that is not embedded."""
    old, new = s.key(), s.key()
    rows = s.update(s.table.number, s.rng.randrange(100), old) + s.move(old, new)
    return rows + s.update(s.table.texts[-1], s.text(), new)


def several(s: Statements) -> Rows:
    return sum(s.rng.choice((insert, update_text, update_number, delete, move))(s) for _ in range(s.rng.randint(2, 12)))


def savepoints(s: Statements) -> Rows:
    rows = insert(s)
    for _ in range(s.rng.randint(1, 3)):
        with s.connection.transaction() as inner:
            part = several(s)
            if s.rng.random() < 0.5:
                part = 0
                raise psycopg.Rollback(inner)
        rows += part
    return rows + update_text(s)


def delete_and_insert(s: Statements) -> Rows:
    key = s.key()
    return s.delete(key) + s.insert(key)


def hot_row(s: Statements, key: tuple[Any, ...]) -> Rows:
    """Often back to a text that the row had a moment ago."""
    return s.update(s.table.texts[0], s.rng.choice((s.text(), "one of 1 texts", "one of 2 texts")), key)


def flapping(s: Statements, key: tuple[Any, ...]) -> Rows:
    return s.delete(key) or s.insert(key)


def _rolled_back(s: Statements) -> Rows:
    return 0


# ---- bulk work: thousands of rows in one transaction ----------------------------------------------------------


def _text_sql(s: Statements) -> str:
    # Long texts only where they are few.
    return _TEXT[s.rng.choice(("short", "short", "repeated", "random", "long"))]


def fill(s: Statements) -> Rows:
    """INSERT … SELECT of many rows; what is there is updated."""
    first, count = s.rng.randrange(KEYS), s.rng.randint(KEYS // 5, KEYS)
    keys = {
        "notes": "g",
        "articles": "(ARRAY['de', 'en', '日本'])[1 + g %% 3], 'slug-' || g || ' \"q\"'",
        "logs": "'log/' || g",
        "parts": "g %% 4, g",
    }[s.table.name]
    texts = ", ".join(_text_sql(s) for _ in s.table.texts)
    columns = [*s.table.key, *s.table.texts, s.table.number]
    more = ""
    if s.table.name == "articles":
        columns.append("padding")
        more = f", {_PADDING}"
    assignments = ", ".join(f"{name} = EXCLUDED.{name}" for name in columns if name not in s.table.key)
    return s.bulk(
        f"INSERT INTO {s.table.qualified} ({', '.join(columns)}) SELECT {keys}, {texts}, g %% 100{more} "
        f"FROM (SELECT n %% {KEYS} AS g FROM generate_series({first}, {first + count - 1}) n) numbers "
        f"ON CONFLICT ({', '.join(s.table.key)}) DO UPDATE SET {assignments}"
    )


def update_many(s: Statements) -> Rows:
    name = s.rng.choice(s.table.texts)
    text = _text_sql(s)
    number = {"notes": "id", "parts": "id"}.get(s.table.name, f"hashtext({s.table.key[-1]})")
    return s.bulk(
        f"UPDATE {s.table.qualified} t SET {name} = (SELECT {text} FROM (SELECT abs({number}) AS g) x) "
        f"WHERE abs({number}) %% {s.rng.randint(1, 4)} = 0"
    )


def update_many_numbers(s: Statements) -> Rows:
    return s.bulk(f"UPDATE {s.table.qualified} SET {s.table.number} = (COALESCE({s.table.number}, 0) + 1) %% 1000")


def update_many_unused(s: Statements) -> Rows:
    return s.bulk(f"UPDATE {s.table.qualified} SET unused = COALESCE(unused, 0) + 1")


def storm(s: Statements) -> Rows:
    """One of several mass updates in a row, each a transaction: the index need follow only the last."""
    return s.rng.choice((update_many_numbers, update_many_unused, update_many))(s)


def delete_many(s: Statements) -> Rows:
    return s.bulk(
        f"DELETE FROM {s.table.qualified} WHERE abs(hashtext({s.table.key[-1]}::text)) %% {s.rng.randint(2, 5)} = 0"
    )


def truncate(s: Statements) -> Rows:
    s.connection.execute(f"TRUNCATE {s.table.qualified}")
    return fill(s)


def truncate_alone(s: Statements) -> Rows:
    insert(s)
    s.connection.execute(f"TRUNCATE {s.table.qualified}")
    return 1


def alter(s: Statements) -> Rows:
    """A new column, and the loss of one that no index reads."""
    s.connection.execute(f"ALTER TABLE {s.table.qualified} ADD COLUMN IF NOT EXISTS more int DEFAULT 3")
    rows = fill(s)
    if s.rng.random() < 0.5:
        s.connection.execute(f"ALTER TABLE {s.table.qualified} DROP COLUMN more")
    return rows


SMALL: tuple[Callable[..., Rows], ...] = (
    *(insert, insert, update_text, update_text, update_number, update_unused, update_nothing, delete),
    *(move, move_and_refill, swap, move_and_update, several, savepoints, delete_and_insert, hot_row, flapping),
)
BULK: tuple[Callable[..., Rows], ...] = (
    *(fill, fill, update_many, update_many, update_many_numbers, update_many_numbers, update_many_unused),
    *(storm, storm, storm, delete_many, truncate, truncate_alone, alter),
)


def fill_all(connection: Connection, seed: str) -> int:
    """Give every table its first rows. Returns how many."""
    rng = random.Random(seed)
    return sum(fill(Statements(connection, table, rng)) for table in TABLES)


def recreate(connection: Connection, name: str, rng: random.Random) -> int:
    """Drop a table and create it with other rows, in one transaction. Returns the rows."""
    table = BY_NAME[name]
    with connection.transaction():
        create(connection, table)
        return fill(Statements(connection, table, rng))
