"""The judge: reads the source by plain SQL and every live version of every index, and compares them row by row.

It shares no code with Sophia: text, key, identity of chunks and vectors are derived here a second time, from what is
promised. Of Sophia's own tables it reads only which versions live, by name and model.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from tests.chaos.tables import CHUNK_TOKENS, DIMENSION, TABLES, Table

AGREEMENT = 0.9998
SHOWN = 5


@dataclass
class Verdict:
    """Differences by kind, and the first of each kind in words; `rows` and `chunks` say how much was compared."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    rows: int = 0
    chunks: int = 0

    @property
    def exact(self) -> bool:
        """Whether nothing differs."""
        return not self.counts

    def add(self, kind: str, where: str, detail: str = "") -> None:
        """Record a difference."""
        self.counts[kind] += 1
        if self.counts[kind] <= SHOWN:
            self.examples.append(f"{kind}: {where} {detail}".rstrip())


def judge(
    connection: psycopg.Connection[Any],
    tables: Sequence[Table] = TABLES,
    source_connection: psycopg.Connection[Any] | None = None,
) -> Verdict:
    """Compare everything. The connections are in autocommit mode, and nothing changes meanwhile.

    Args:
        connection: to the database of the indexes.
        tables: what to compare.
        source_connection: to the tables' database, if it is another one.
    """
    verdict = Verdict()
    for table in tables:
        source = dict(_source(source_connection or connection, table))
        versions = connection.execute(
            "SELECT v.store_name, v.model, v.state FROM sophia.index_versions v "
            "WHERE v.index_name = %s AND v.state <> 'retired' ORDER BY v.number",
            [table.name],
        ).fetchall()
        serving = [model for _, model, state in versions if state == "serving"]
        if len(serving) != 1:
            verdict.add("versions", table.name, f"{len(serving)} versions serve")
        for store, model, _ in versions:
            _compare(verdict, connection, table, f"indexes.{store}", model, source)
        models = [row[0] for row in connection.execute(f"SELECT DISTINCT model FROM indexes.{table.name}")]
        if source and models not in ([], serving):
            verdict.add("versions", table.name, f"the view says {models}, {serving} serve")
        if serving:
            _compare(verdict, connection, table, f"indexes.{table.name}", serving[0], source, view=True)
    return verdict


def _source(connection: psycopg.Connection[Any], table: Table) -> Iterator[tuple[str, dict[str, Any]]]:
    names = (*table.key, *table.texts, table.number)
    for values in connection.execute(f"SELECT {', '.join(names)} FROM {table.qualified}"):
        row = dict(zip(names, values, strict=True))
        key = json.dumps([row[name] for name in table.key], ensure_ascii=False, separators=(",", ":"))
        yield key, row


def _compare(
    verdict: Verdict,
    connection: psycopg.Connection[Any],
    table: Table,
    relation: str,
    model: str,
    source: dict[str, dict[str, Any]],
    *,
    view: bool = False,
) -> None:
    stored: dict[str, list[Any]] = defaultdict(list)
    identity = "key || '#' || chunk" if view else "id::text"
    ids: Counter[str] = Counter()
    for values in connection.execute(
        f"SELECT {identity}, key, chunk, content, embedding::real[], metadata FROM {relation} ORDER BY key, chunk"
    ):
        ids[values[0]] += 1
        stored[values[1]].append(values[2:])
        verdict.chunks += 1
    for name, count in ids.items():
        if count > 1:
            verdict.add("doubled", f"{relation} id {name}", f"{count} times")
    for key, row in source.items():
        verdict.rows += 1
        text = render(table.templates[model], row)
        chunks = stored.pop(key, [])
        where = f"{relation} {key}"
        if not text:
            if chunks:
                verdict.add("extra", where, "its text is empty")
            continue
        if not chunks:
            verdict.add("missing", where)
            continue
        if [chunk[0] for chunk in chunks] != list(range(len(chunks))):
            verdict.add("doubled", where, f"chunk numbers {[chunk[0] for chunk in chunks]}")
        if not covers([chunk[1] for chunk in chunks], text):
            verdict.add("stale", where, f"{len(chunks)} chunks do not make up its text")
        for number, content, vector, metadata in chunks:
            if cosine(vector, vector_of(content, model)) < AGREEMENT:
                verdict.add("vector", f"{where} chunk {number}")
            if metadata != {table.number: row[table.number]}:
                verdict.add("metadata", f"{where} chunk {number}", f"{metadata} for {row[table.number]}")
    for key in stored:
        verdict.add("extra", f"{relation} {key}")


def render(template: str, row: dict[str, Any]) -> str:
    """The text of a row: columns in braces, null as nothing, no white space around."""
    text = template
    for name, value in row.items():
        text = text.replace("{" + name + "}", "" if value is None else str(value))
    return text.strip()


def covers(pieces: list[str], text: str) -> bool:
    """Whether the pieces, in their order, are parts of the text and leave out nothing but white space."""
    most = CHUNK_TOKENS * 4
    if len(text) <= most:
        return pieces == [text]
    place = 0
    for piece in pieces:
        found = text.find(piece, place)
        if found < 0 or text[place:found].strip() or not piece or len(piece) > most:
            return False
        place = found + len(piece)
    return not text[place:].strip()


def vector_of(text: str, model: str) -> list[float]:
    """The unit vector that a model has for a text: sixteen bits a dimension, from a hash of both."""
    raw = struct.unpack(f">{DIMENSION}H", hashlib.shake_256(f"{model}\0{text}".encode()).digest(2 * DIMENSION))
    values = [value - 32767.5 for value in raw]
    length = math.sqrt(sum(value * value for value in values))
    return [value / length for value in values]


def cosine(one: list[float], other: list[float]) -> float:
    """Cosine of two vectors, neither of which need have length 1."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))
