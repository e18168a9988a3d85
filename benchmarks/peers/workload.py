"""The source table, its texts, and what is right: the index's table read and compared with the source's rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg

from benchmarks.hash_endpoint import vector
from sophia import sample

Connection = psycopg.Connection[Any]
LONGEST = 400
# Float32 through JSON and a vector column; another text's vector is near 0.
LEAST_COSINE = 0.9999
CREATE = """
CREATE TABLE public.documents (
    id bigint PRIMARY KEY, body text NOT NULL, views integer NOT NULL DEFAULT 0)
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """What an index holds wrongly, in rows."""

    missing: int
    extra: int
    stale: int

    @property
    def exact(self) -> bool:
        """Whether nothing differs."""
        return self.missing == self.extra == self.stale == 0

    def __str__(self) -> str:
        return "exact" if self.exact else f"{self.missing} missing, {self.extra} extra, {self.stale} stale"


def texts(count: int) -> list[str]:
    """Short texts, all different: first paragraphs of docstrings below their names."""
    made = []
    for document in sample.docstrings(count):
        body = " ".join(document.body.split("\n\n", 1)[0].split())
        made.append(f"{document.name}: {body}"[:LONGEST].strip())
    return made


def load(connection: Connection, bodies: Sequence[str]) -> None:
    """Make the source table and fill it; ids count from 1."""
    connection.execute(CREATE)
    with connection.cursor().copy("COPY public.documents (id, body) FROM STDIN") as copy:
        for number, body in enumerate(bodies, start=1):
            copy.write_row((number, body))
    connection.execute("ANALYZE public.documents")


class Source:
    """Writes to an arm's source table; every new text is one of its own."""

    def __init__(self, connection: Connection, rows: int) -> None:
        self._connection = connection
        self._next_id = rows + 1
        self._revision = 0

    def ids(self, count: int) -> list[int]:
        """Ids that are there, spread over the table."""
        rows = self._connection.execute(
            "SELECT id FROM public.documents ORDER BY hashint8(id), id LIMIT %s OFFSET %s", [count, self._revision % 97]
        )
        return [row[0] for row in rows]

    def text(self, what: str) -> str:
        """A text that was not there before."""
        self._revision += 1
        return f"{what} {self._revision}: a heron waits by the river until the water falls"

    def insert(self) -> tuple[int, str]:
        """Insert a row; (id, text)."""
        number, body = self._next_id, self.text("insert")
        self._next_id += 1
        self._connection.execute("INSERT INTO public.documents (id, body) VALUES (%s, %s)", [number, body])
        return number, body

    def update(self, number: int) -> str:
        """Give a row another text."""
        body = self.text("update")
        self._connection.execute("UPDATE public.documents SET body = %s WHERE id = %s", [body, number])
        return body

    def delete(self, number: int) -> None:
        """Delete a row."""
        self._connection.execute("DELETE FROM public.documents WHERE id = %s", [number])

    def touch(self, numbers: Sequence[int]) -> None:
        """Change a column that is not embedded."""
        self._connection.execute("UPDATE public.documents SET views = views + 1 WHERE id = ANY(%s)", [list(numbers)])

    def transaction(self) -> Any:
        """A transaction of the writing connection."""
        return self._connection.transaction()

    def rows(self) -> dict[int, str]:
        """What is there."""
        return dict(self._connection.execute("SELECT id, body FROM public.documents").fetchall())


def compare(source: dict[int, str], index: Iterable[tuple[int, str, Sequence[float]]]) -> Difference:
    """Compare the source's texts with the index's rows (id, text, vector), one row a document."""
    stored = list(index)
    counted = Counter(number for number, _, _ in stored)
    extra = sum(count - (number in source) for number, count in counted.items())
    stale = 0
    for number, content, embedding in stored:
        body = source.get(number)
        if body is None:
            continue
        found = np.asarray(embedding, dtype=np.float32)
        cosine = float(found @ vector(body, len(found))) / (float(np.linalg.norm(found)) or 1.0)
        stale += content != body or cosine < LEAST_COSINE
    return Difference(len(source.keys() - counted.keys()), extra, stale)
