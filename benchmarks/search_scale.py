"""How fast and how exact is search among a million vectors?

    python -m benchmarks.search_scale [--rows 1000000] [--queries 500] [--keep DIR]
    python -m benchmarks.search_scale --graph half|binary
    python -m benchmarks.search_scale --quick

A version's table is made by the real store (`ensure`, `finish`) on an embedded PostgreSQL of its own and filled by COPY
with unit vectors in clusters of a hundred: 384 dimensions, seeded. The clusters' centres are independent of each other,
or lie around so many topics as `--topics` says. Queries are new members of the same clusters, asked through the public
`search`; what they must find comes from an exact search by numpy over all vectors in float32. The filters let one row
in ten (`kind`) and one in a hundred (`module`) through, whatever its cluster.

`--keep DIR` keeps the server's folder: a second run with the same rows and seed finds it filled and built.
`--maintenance-mb`, `--workers`, `--shared-buffers-mb` are PostgreSQL's; unset, they are as the store and the embedded
server have them.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import sql as composed

from benchmarks.harness import DURABILITY, Prepared, cpu_seconds, durability, quantiles, save, show
from sophia.catalog import default_path, load
from sophia.database import Database, open_database
from sophia.indexing.search import search
from sophia.indexing.versions import IndexVersion, ensure_version
from sophia.settings import Settings, load_settings
from sophia.stores import IN_DATABASE, pgvector_graph

INDEX = "documents"
DIMENSION = 384
CLUSTER = 100  # rows of a cluster
CHUNK = 10_000  # rows generated together
FIRST = 1_000_000_000  # keys of one length make rows of one length, which numpy writes at once
K = 10
EFFORTS = (40, 100, 200, 400)
FILTERS: dict[str, dict[str, str]] = {"none": {}, "10 %": {"kind": "k3"}, "1 %": {"module": "m37"}}
COLUMNS = "id, key, bucket, chunk, span, content, content_hash, embedding, metadata, clock, run"
BIGINT_OID = 20
LOWER_INCLUSIVE = 2

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Data:
    """The rows, generated anew in chunks whenever they are needed: equal arguments, equal rows.

    Args:
        spread: length of a member's noise beside its centre's length of 1.
        topics: centres lie around so many topics; 0 makes them independent.
    """

    rows: int
    seed: int
    spread: float
    topics: int

    def centres(self) -> Floats:
        """Shape (clusters, 384)."""
        rng = np.random.default_rng([self.seed, 0])
        clusters = max(1, self.rows // CLUSTER)
        own = _unit(rng.standard_normal((clusters, DIMENSION), dtype=np.float32))
        if not self.topics:
            return own
        around = _unit(rng.standard_normal((self.topics, DIMENSION), dtype=np.float32))
        return _unit(around[rng.integers(self.topics, size=clusters)] + own)

    def chunks(self) -> Iterator[tuple[int, Floats, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """(number of the first row, vectors, module numbers 0 to 99, kind numbers 0 to 9)."""
        centres = self.centres()
        for first in range(0, self.rows, CHUNK):
            rng = np.random.default_rng([self.seed, 1, first])
            size = min(CHUNK, self.rows - first)
            yield (
                first,
                self._members(rng, centres, size),
                rng.integers(100, size=size),
                rng.integers(10, size=size),
            )

    def queries(self, count: int) -> Floats:
        """New members of the same clusters, shape (count, 384)."""
        return self._members(np.random.default_rng([self.seed, 2]), self.centres(), count)

    def _members(self, rng: np.random.Generator, centres: Floats, size: int) -> Floats:
        noise = rng.standard_normal((size, DIMENSION), dtype=np.float32) * np.float32(self.spread / DIMENSION**0.5)
        return _unit(centres[rng.integers(len(centres), size=size)] + noise)


def _unit(vectors: npt.NDArray[Any]) -> Floats:
    unit: Floats = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def encode(version: IndexVersion, first: int, vectors: Floats, modules: Any, kinds: Any) -> bytes:
    """Rows in PostgreSQL's binary COPY format, header and trailer excluded."""
    keys = [f"[{FIRST + first + number}]" for number in range(len(vectors))]
    contents = [f"passage {key}" for key in keys]
    metadata = [f'{{"kind": "k{kind}", "module": "m{module:02}"}}' for module, kind in zip(modules, kinds, strict=True)]
    span = struct.pack(">Biiii", LOWER_INCLUSIVE, 4, 0, 4, len(contents[0]))
    clock = struct.pack(">iiiii", 1, 0, BIGINT_OID, 3, 1) + struct.pack(">iqiqiq", 8, 1, 8, 1, 8, 0)
    fields: list[tuple[str, Any, int, Any]] = [
        ("id", "V16", 16, [version.chunk_id(key, 0).bytes for key in keys]),
        ("key", f"S{len(keys[0])}", len(keys[0]), [key.encode() for key in keys]),
        ("bucket", ">i4", 4, [number % 256 for number in range(len(keys))]),
        ("chunk", ">i4", 4, 0),
        ("span", f"V{len(span)}", len(span), span),
        ("content", f"S{len(contents[0])}", len(contents[0]), [text.encode() for text in contents]),
        ("hash", "V16", 16, [hashlib.sha256(text.encode()).digest()[:16] for text in contents]),
        ("embedding", f"V{4 + 4 * DIMENSION}", 4 + 4 * DIMENSION, None),
        ("metadata", f"S{1 + len(metadata[0])}", 1 + len(metadata[0]), [b"\x01" + text.encode() for text in metadata]),
        ("clock", f"V{len(clock)}", len(clock), clock),
        ("run", "S9", 9, b"benchmark"),
    ]
    layout: list[tuple[str, str]] = [("count", ">i2")]
    for name, kind, _, _ in fields:
        layout += [(f"{name}_size", ">i4"), (name, kind)]
    rows = np.zeros(len(keys), dtype=layout)
    rows["count"] = len(fields)
    for name, kind, size, values in fields:
        rows[f"{name}_size"] = size
        if name == "embedding":
            head = np.frombuffer(struct.pack(">HH", DIMENSION, 0), dtype=np.uint8)
            body = np.ascontiguousarray(vectors, dtype=">f4").view(np.uint8)
            whole = np.concatenate([np.broadcast_to(head, (len(keys), 4)), body], axis=1)
            rows[name] = np.ascontiguousarray(whole).view(f"V{size}").reshape(-1)
        elif isinstance(values, list) and kind.startswith("V"):
            rows[name] = np.frombuffer(b"".join(values), dtype=f"V{size}")
        elif isinstance(values, bytes) and kind.startswith("V"):
            rows[name] = np.frombuffer(values, dtype=f"V{size}")[0]
        else:
            rows[name] = values
    return rows.tobytes()


def fill(connection: psycopg.Connection[Any], version: IndexVersion, data: Data) -> float:
    """COPY all rows; seconds."""
    started = time.perf_counter()
    table = composed.Identifier("indexes", version.store_name)
    statement = composed.SQL(f"COPY {{}} ({COLUMNS}) FROM STDIN (FORMAT binary)").format(table)
    for first, vectors, modules, kinds in data.chunks():
        with connection.cursor().copy(statement) as copy:
            copy.write(b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0))
            copy.write(encode(version, first, vectors, modules, kinds))
            copy.write(struct.pack(">h", -1))
        if first % 100_000 == 0:
            print(f"  {first + len(vectors)} rows after {time.perf_counter() - started:.0f} s", flush=True)
    connection.execute(composed.SQL("VACUUM (ANALYZE) {}").format(table))
    return time.perf_counter() - started


def exact(data: Data, queries: Floats) -> dict[str, list[set[str]]]:
    """Keys of the true `K` nearest rows of each query, by filter."""
    best: dict[str, tuple[Floats, npt.NDArray[np.int64]]] = {
        name: (np.full((len(queries), K), -2, np.float32), np.full((len(queries), K), -1, np.int64)) for name in FILTERS
    }
    for first, vectors, modules, kinds in data.chunks():
        scores = queries @ vectors.T
        numbers = np.arange(first, first + len(vectors))
        for name, wanted in FILTERS.items():
            keep = np.ones(len(vectors), dtype=bool)
            if "module" in wanted:
                keep &= modules == int(wanted["module"][1:])
            if "kind" in wanted:
                keep &= kinds == int(wanted["kind"][1:])
            old_scores, old_numbers = best[name]
            joined = np.concatenate([old_scores, scores[:, keep]], axis=1)
            owners = np.concatenate(
                [old_numbers, np.broadcast_to(numbers[keep], (len(queries), int(keep.sum())))], axis=1
            )
            top = np.argpartition(-joined, K - 1, axis=1)[:, :K]
            best[name] = (np.take_along_axis(joined, top, 1), np.take_along_axis(owners, top, 1))
    return {
        name: [{f"[{FIRST + int(number)}]" for number in row if number >= 0} for row in numbers]
        for name, (_, numbers) in best.items()
    }


def ask(connection: psycopg.Connection[Any], queries: Floats, truth: dict[str, list[set[str]]]) -> list[dict[str, Any]]:
    """Latency and recall of every effort and filter; the first twenty queries of each warm up."""
    figures = []
    default = pgvector_graph.LEAST_EFFORT
    for effort in EFFORTS:
        pgvector_graph.LEAST_EFFORT = effort
        for name, wanted in FILTERS.items():
            times, recalls, short = [], [], 0
            spent = cpu_seconds(connection.info.backend_pid)
            for number in [*range(min(20, len(queries))), *range(len(queries))]:
                prepared = Prepared(queries[number])
                started = time.perf_counter()
                hits = search(connection, INDEX, "a query", lambda _, p=prepared: p, k=K, filters=wanted)
                times.append((time.perf_counter() - started) * 1000)
                expected = truth[name][number]
                recalls.append(len(expected & {hit.key for hit in hits}) / len(expected))
                short += len(hits) < len(expected)
            spent = cpu_seconds(connection.info.backend_pid) - spent
            asked = len(times)
            times, recalls = times[-len(queries) :], recalls[-len(queries) :]
            figures.append(
                {
                    "ef_search": effort,
                    "filter": name,
                    "milliseconds": quantiles(times),
                    "server_cpu_ms": spent * 1000 / asked,
                    "recall": float(np.mean(recalls)),
                    "recall_p5": float(np.percentile(recalls, 5)),
                    "too_few_results": short,
                }
            )
            print(f"  ef_search {effort}, filter {name}: {figures[-1]}", flush=True)
    pgvector_graph.LEAST_EFFORT = default
    return figures


def open_tuned(settings: Settings, shared_buffers_mb: int | None) -> Database:
    """The embedded server, restarted if its shared buffers are to be others."""
    database = open_database(settings)
    if shared_buffers_mb is None:
        return database
    with database.connect() as connection:
        connection.execute(composed.SQL("ALTER SYSTEM SET shared_buffers = {}").format(f"{shared_buffers_mb}MB"))
    database.release()
    waiting = settings.pgdata / "postmaster.pid"
    while waiting.exists():
        time.sleep(0.2)
    return open_database(settings)


def measure(arguments: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Fill and build unless that is done; then ask. Returns the figures."""
    settings = load_settings(home=home)
    catalog = load(settings.catalog or default_path())
    data = Data(arguments.rows, arguments.seed, arguments.spread, arguments.topics)
    database = open_tuned(settings, arguments.shared_buffers_mb)
    figures: dict[str, Any] = {
        "rows": data.rows,
        "graph": arguments.graph,
        "spread": data.spread,
        "topics": data.topics,
    }
    try:
        with database.connect() as connection:
            index = catalog.index(INDEX).model_copy(update={"graph": arguments.graph})
            version = ensure_version(connection, catalog, index, "local")
            store = IN_DATABASE.of(version)
            store.ensure(connection, version)
            table = f"indexes.{version.store_name}"
            there = store.counts(connection, version)[1]
            if there not in (0, data.rows):
                raise SystemExit(f"{home} holds {there} rows, not {data.rows}; give --keep another folder")
            if there == 0:
                figures["fill_seconds"] = fill(connection, version, data)
            if arguments.maintenance_mb is not None:
                pgvector_graph.LEAST_BUILD_KB = pgvector_graph.MOST_BUILD_KB = arguments.maintenance_mb * 1024
            if arguments.workers is not None:
                connection.execute(
                    "SELECT set_config('max_parallel_maintenance_workers', %s, false)", [str(arguments.workers)]
                )
            notices: list[str] = []
            connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
            started = time.perf_counter()
            store.finish(connection, version)
            figures["build_seconds"] = time.perf_counter() - started
            figures["build_notices"] = notices
            print(f"  index built after {figures['build_seconds']:.0f} s {notices}", flush=True)
            figures["most_build_mb"] = pgvector_graph.MOST_BUILD_KB // 1024
            for what in ("max_parallel_maintenance_workers", "shared_buffers"):
                figures[what] = connection.execute(f"SHOW {what}").fetchone()[0]  # type: ignore[index]
            sizes = connection.execute(
                "SELECT pg_relation_size(%s::regclass), pg_relation_size(%s::regclass)",
                [table, f"{table}_{pgvector_graph.SUFFIXES[arguments.graph]}"],
            ).fetchone()
            figures["table_mb"], figures["hnsw_mb"] = (round(int(size) / 2**20) for size in sizes or (0, 0))
            figures["durability"] = durability(connection)
        queries = data.queries(arguments.queries)
        started = time.perf_counter()
        truth = exact(data, queries)
        figures["exact_seconds"] = time.perf_counter() - started
        with database.connect() as connection:
            # The index must come from disk once, whichever arm is first.
            connection.execute("SET statement_timeout = '60s'")
            figures["default_ef_search"] = pgvector_graph.LEAST_EFFORT
            figures["arms"] = ask(connection, queries, truth)
    finally:
        database.release()
    return figures


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--spread", type=float, default=0.6, help="length of a member's noise, its centre's being 1")
    parser.add_argument("--topics", type=int, default=0, help="centres lie around so many topics; 0: independent")
    parser.add_argument("--maintenance-mb", type=int, default=None, help="maintenance_work_mem of the build")
    parser.add_argument("--workers", type=int, default=None, help="max_parallel_maintenance_workers of the build")
    parser.add_argument("--shared-buffers-mb", type=int, default=None)
    parser.add_argument("--graph", choices=pgvector_graph.SUFFIXES, default="full", help="what the graph holds")
    parser.add_argument("--keep", type=Path, default=None, metavar="DIR", help="use and keep this folder")
    parser.add_argument("--quick", action="store_true", help="2,000 rows and 50 queries")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.queries = 2_000, 50
    home = arguments.keep or Path(tempfile.mkdtemp(prefix="sophia-bench-"))
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o755)
    try:
        figures = measure(arguments, home)
    finally:
        if arguments.keep is None:
            # Its watcher stops the server a few seconds after its last user; without the folder it would not.
            while (home / "postgres" / "postmaster.pid").exists():
                time.sleep(0.1)
            shutil.rmtree(home, ignore_errors=True)
    print(
        f"{figures['rows']} vectors; table {figures['table_mb']} MB, HNSW {figures['hnsw_mb']} MB, built in "
        f"{figures['build_seconds']:.0f} s with at most {figures['most_build_mb']} MB and "
        f"{figures['max_parallel_maintenance_workers']} workers; shared_buffers {figures['shared_buffers']}; "
        f"{ {name: figures['durability'][name] for name in DURABILITY} }"
    )
    show(
        f"search, {arguments.queries} queries, recall@{K} against exact",
        ["ef_search", "filter", "p50 ms", "p95 ms", "p99 ms", "CPU ms", "recall", "recall p5", "too few"],
        [
            (
                arm["ef_search"],
                arm["filter"],
                *(arm["milliseconds"][name] for name in ("p50", "p95", "p99")),
                arm["server_cpu_ms"],
                f"{arm['recall']:.4f}",
                f"{arm['recall_p5']:.2f}",
                arm["too_few_results"],
            )
            for arm in figures["arms"]
        ],
    )
    save(
        "search_scale" if arguments.graph == "full" else f"search_scale_{arguments.graph}",
        figures,
        quick=arguments.quick,
    )


if __name__ == "__main__":
    main()
