"""How long from a source commit until search returns the new content?

    python -m benchmarks.hot_path [--changes 200] [--rows 2000]

Capture and indexer run as processes, pinned with PostgreSQL to one core; this process, on another core where there is
one, commits single-row changes and polls the public search function on a connection of its own. The query's vector is
computed beforehand. Real PostgreSQL with its durability on, real MiniLM, short texts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.harness import quantiles, save, show
from sophia import sample
from sophia.catalog import default_path, load
from sophia.database import Database, open_database
from sophia.embedding import load_embedder
from sophia.indexing.search import search
from sophia.local import sophia_command
from sophia.services.supervisor import Child
from sophia.settings import Settings, load_settings

INDEX = "documents"
FIRST_ID = 1_000_001
DURABILITY = ("fsync", "full_page_writes", "synchronous_commit")
STAGES = """
SELECT EXTRACT(epoch FROM d.received_at - d.committed_at) * 1000,
       EXTRACT(epoch FROM b.applied_at - d.received_at) * 1000 - b.apply_ms,
       b.embed_ms, b.apply_ms - b.embed_ms
FROM sophia.documents d
JOIN sophia.collections c ON c.id = d.collection_id AND c.name = 'documents'
CROSS JOIN LATERAL (SELECT * FROM sophia.batches b WHERE b.lane = 'live' AND b.id > %(since)s
                    ORDER BY b.id DESC LIMIT 1) b
WHERE d.key = %(key)s
"""


class Prepared:
    """An embedder whose query vector is known already."""

    def __init__(self, vector: Any) -> None:
        self._vector = vector

    def embed_query(self, _text: str) -> Any:
        """The vector."""
        return self._vector


@contextmanager
def running(settings: Settings, cores: list[int], rows: int) -> Iterator[Database]:
    """Database, capture and indexer, all pinned to the first core, this process to the last."""
    os.sched_setaffinity(0, {cores[0]})
    database = open_database(settings)
    environment = {"SOPHIA_HOME": str(settings.home), "OMP_NUM_THREADS": "1"}
    children = [
        Child(name, sophia_command("-v", name), settings.home / f"{name}.log", environment)
        for name in ("capture", "indexer")
    ]
    with database.connect() as connection:
        sample.load(connection, limit=rows)
    for child in children:
        child.start()
    try:
        wait_level(database)
        os.sched_setaffinity(0, {cores[-1]})
        yield database
    finally:
        for child in children:
            child.signal(2)
        for child in children:
            if child.process is not None:
                child.process.wait(20)
        database.release()


def wait_level(database: Database, seconds: float = 600) -> None:
    """Until every shard was compared and nothing waits."""
    deadline = time.monotonic() + seconds
    with database.connect() as connection:
        while time.monotonic() < deadline:
            captured = connection.execute("SELECT count(*) FROM sophia.captured_tables WHERE complete").fetchone()
            behind = connection.execute(
                "SELECT count(*), count(*) FILTER (WHERE position < 0) FROM sophia.shards"
            ).fetchone()
            if captured and captured[0] >= 3 and behind and behind[0] and behind[1] == 0:
                return
            time.sleep(0.2)
    raise TimeoutError("the indexes did not become level")


def one(
    writer: psycopg.Connection[Any], reader: psycopg.Connection[Any], statement: str, key: int, body: str, vector: Any
) -> tuple[float, list[float]]:
    """Commit one change; (milliseconds until search shows it, stages)."""
    since = reader.execute("SELECT COALESCE(max(id), 0) FROM sophia.batches").fetchone()
    gone = statement.startswith("DELETE")
    prepared = Prepared(vector)
    writer.execute(statement, {"id": key, "body": body})
    started = time.perf_counter()
    while True:
        hits = search(reader, INDEX, body, lambda _version: prepared, k=10)  # type: ignore[arg-type, return-value]
        found = next((hit.content for hit in hits if hit.key == f"[{key}]"), None)
        elapsed = (time.perf_counter() - started) * 1000
        if (gone and found is None) or (not gone and found is not None and body in found):
            break
        if elapsed > 30_000:
            raise TimeoutError(f"{statement.split()[0]} of {key} is not searchable")
    stages = reader.execute(STAGES, {"since": since[0] if since else 0, "key": f"[{key}]"}).fetchone()
    return elapsed, [float(value) for value in stages] if stages else []


STATEMENTS = {
    "insert": "INSERT INTO public.documents (id, name, module, kind, title, body) "
    "VALUES (%(id)s, 'bench', 'bench', 'bench', 'bench', %(body)s)",
    "update": "UPDATE public.documents SET body = %(body)s WHERE id = %(id)s",
    "delete": "DELETE FROM public.documents WHERE id = %(id)s",
}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=200, help="rows to insert, update and delete each")
    parser.add_argument("--rows", type=int, default=2_000, help="documents in the index beforehand")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    home = Path(tempfile.mkdtemp(prefix="sophia-bench-"))
    try:
        settings = load_settings(home=home)
        catalog = load(settings.catalog or default_path())
        with running(settings, cores, arguments.rows) as database:
            index = catalog.index(INDEX)
            embedder = load_embedder(catalog.model(index.model), index.precision, settings)
            times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
            stages: dict[str, list[list[float]]] = {name: [] for name in STATEMENTS}
            with database.connect() as writer, database.connect() as reader:
                durable = {name: reader.execute(f"SHOW {name}").fetchone()[0] for name in DURABILITY}  # type: ignore[index]
                for number in range(-10, arguments.changes):
                    key = FIRST_ID + 10 + number
                    first = f"measurement {number}: a heron waits by the river"
                    second = f"measurement {number}: a kingfisher dives into the pond"
                    for what, body in (("insert", first), ("update", second), ("delete", second)):
                        elapsed, parts = one(writer, reader, STATEMENTS[what], key, body, embedder.embed_query(body))
                        if number >= 0:  # the first ten warm caches up
                            times[what].append(elapsed)
                            stages[what].append(parts)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    rows = []
    for what, values in times.items():
        q = quantiles(values)
        middle = [quantiles([part[i] for part in stages[what] if part])["p50"] for i in range(4)]
        rows.append((what, q["n"], q["p50"], q["p95"], q["p99"], *middle))
    print(f"{arguments.rows} documents beforehand; Sophia and PostgreSQL on one core; {durable}")
    show(
        "commit → searchable, ms (stages: medians)",
        ["change", "n", "p50", "p95", "p99", "WAL + inbox", "queue", "embed", "store"],
        rows,
    )
    save(
        "hot_path",
        {
            "rows": arguments.rows,
            "durability": durable,
            "milliseconds": {n: quantiles(v) for n, v in times.items()},
            "stage_medians": {
                row[0]: dict(zip(("wal_inbox", "queue", "embed", "store"), row[5:], strict=True)) for row in rows
            },
        },
    )


if __name__ == "__main__":
    main()
