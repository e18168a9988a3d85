"""The indexes of a pgvector table that are built once its first load is complete; above all the neighbours' graph.

The table keeps every vector whole, in float32. The graph may hold less of it, and so needs less memory: then it only
proposes candidates, and their order is that of the whole vectors. Another kind of graph is another index of the same
table: it is built beside the old one, which goes when the new one is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import sql as composed
from psycopg.rows import TupleRow

from sophia import sql
from sophia.catalog.models import GraphKind
from sophia.indexing.versions import IndexVersion

Connection = psycopg.Connection[TupleRow]
Q = sql.load("pgvector")
SCHEMA = "indexes"
# Memory for building the graph: the vectors and about so much a vector for its links (2.2 GB for 1,000,000 of 384
# dimensions). With less than it needs a build goes on, several times slower.
GRAPH_BYTES = 800
LEAST_BUILD_KB = 65_536
MOST_BUILD_KB = 4_194_304
# pgvector's default of 40 misses texts that are far from all others: a row about oranges among 8,000 on Python was
# nobody's close neighbour in the graph and was not found below 200, which costs a millisecond more.
LEAST_EFFORT = 200
MOST_EFFORT = 1_000
# Candidates of the graph for each result that is wanted: a bit a dimension ranks coarsely.
CANDIDATES: dict[GraphKind, int] = {"full": 1, "half": 2, "binary": 20}
# PostgreSQL cuts names off at 63 bytes, so the endings are short.
SUFFIXES: dict[GraphKind, str] = {"full": "hnsw", "half": "hnsw_h", "binary": "hnsw_b"}
# Indexes that earlier releases made, and nothing uses any more.
FORMER = ("recent",)
# What the graph is built of, and what a search orders by so that it is used.
_GRAPHS: dict[GraphKind, LiteralString] = {
    "full": Q["graph_full"],
    "half": Q["graph_half"],
    "binary": Q["graph_binary"],
}
_NEAR: dict[GraphKind, LiteralString] = {"full": Q["near_full"], "half": Q["near_half"], "binary": Q["near_binary"]}


@dataclass(frozen=True, slots=True)
class Effort:
    """How a search goes through the graph: nodes that it visits at least, and candidates that it takes from it."""

    visited: int
    candidates: int

    @classmethod
    def of(cls, kind: GraphKind, k: int) -> Effort:
        """For the `k` best."""
        candidates = k * CANDIDATES[kind]
        least = LEAST_EFFORT if kind == "binary" else k
        wanted = max(candidates, min(least, MOST_EFFORT))
        return cls(max(LEAST_EFFORT, min(MOST_EFFORT, max(k * 4, wanted))), wanted)


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """An index that is being built: `done` of about `rows` rows, for `seconds` so far; `phase` is PostgreSQL's word."""

    name: str
    phase: str
    done: int
    rows: int
    seconds: float

    def __str__(self) -> str:
        share = f" {min(1.0, self.done / self.rows):.0%}" if self.rows and self.done else ""
        return f"building {self.name}: {self.phase}{share}, {self.seconds:.0f} s"


@dataclass(frozen=True, slots=True)
class _Build:
    """An index that is built after the first load."""

    query: str
    suffix: str
    parts: Mapping[str, composed.Composable]


def near(version: IndexVersion, kind: GraphKind) -> composed.Composed:
    """What a search orders by so that the graph of this kind serves it."""
    return _fragment(_NEAR[kind], version)


def is_whole(connection: Connection, version: IndexVersion, kind: GraphKind) -> bool:
    """Whether the graph is there and valid."""
    name = f'{SCHEMA}."{version.store_name}_{SUFFIXES[kind]}"'
    return connection.execute(Q["has_vector_index"], {"name": name}, prepare=True).fetchone() is not None


def build(connection: Connection, version: IndexVersion) -> None:
    """Build the indexes of filters, full text and vectors, without blocking writers. Needs autocommit mode.

    One process builds at a time; another that finds the lock taken leaves it to that one.
    """
    with _builder(connection, version) as free:
        if not free:
            return
        missing = [build for build in _builds(version) if not _is_built(connection, version, build.suffix)]
        if missing:
            table = composed.Identifier(SCHEMA, version.store_name)
            connection.execute(composed.SQL(_text("analyze")).format(table=table))
            memory = _memory(connection, version)
            connection.execute("SELECT set_config('maintenance_work_mem', %s, false)", [f"{memory}kB"])
            for build in missing:
                name = composed.Identifier(f"{version.store_name}_{build.suffix}")
                connection.execute(composed.SQL(_text(build.query)).format(table=table, name=name, **build.parts))
            # Expressions have no statistics before their index is there.
            connection.execute(composed.SQL(_text("analyze")).format(table=table))
        outdated = [suffix for kind, suffix in SUFFIXES.items() if kind != version.index.graph]
        for suffix in [*outdated, *FORMER]:
            if _is_built(connection, version, suffix):
                _drop(connection, version, suffix)


def build_progress(connection: Connection, version: IndexVersion) -> BuildProgress | None:
    """The index of this version that is being built right now, by any process; None if none is."""
    name = f'{SCHEMA}."{version.store_name}"'
    row = connection.execute(Q["build_progress"], {"name": name}).fetchone()
    return BuildProgress(row[0], row[1], int(row[2]), int(row[3]), float(row[4] or 0)) if row else None


def _builds(version: IndexVersion) -> list[_Build]:
    """The indexes of filters, full text and vectors, in the order of their building."""
    kind = version.index.graph
    fields = [
        _Build("create_field_index", f"field{number}", {"field": composed.Literal(field)})
        for number, field in enumerate(version.index.metadata)
    ]
    graph = {"graph": _fragment(_GRAPHS[kind], version)}
    return [*fields, _Build("create_text_index", "text", {}), _Build("create_hnsw_index", SUFFIXES[kind], graph)]


@contextmanager
def _builder(connection: Connection, version: IndexVersion) -> Iterator[bool]:
    """Whether this session is the one that builds; until the end of the block."""
    lock = {"name": f"sophia.finish:{version.store_name}"}
    row = connection.execute(Q["try_lock"], lock).fetchone()
    if row is None or not row[0]:
        yield False
        return
    try:
        yield True
    finally:
        if not connection.closed:
            connection.execute("RESET maintenance_work_mem")
            connection.execute(Q["unlock"], lock)


def _is_built(connection: Connection, version: IndexVersion, suffix: str) -> bool:
    """Whether an index is there and whole; one that a cut-off build left invalid is dropped."""
    state = connection.execute(Q["index_state"], {"name": f'{SCHEMA}."{version.store_name}_{suffix}"'}).fetchone()
    if state is not None and not state[0]:
        _drop(connection, version, suffix)
    return state is not None and bool(state[0])


def _drop(connection: Connection, version: IndexVersion, suffix: str) -> None:
    name = composed.Identifier(SCHEMA, f"{version.store_name}_{suffix}")
    connection.execute(composed.SQL("DROP INDEX CONCURRENTLY {}").format(name))


def _memory(connection: Connection, version: IndexVersion) -> int:
    """Kilobytes that the graph needs while it is built, within bounds."""
    row = connection.execute(Q["estimate"], {"name": f'{SCHEMA}."{version.store_name}"'}).fetchone()
    rows = int(row[0]) if row else 0
    return max(LEAST_BUILD_KB, min(MOST_BUILD_KB, rows * (4 * version.dimension + GRAPH_BYTES) // 1024))


def _fragment(text: LiteralString, version: IndexVersion) -> composed.Composed:
    return composed.SQL(text).format(dimension=composed.Literal(version.dimension))


def _text(name: str) -> LiteralString:
    text: LiteralString = Q[name]
    return text
