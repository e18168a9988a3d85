"""The stand-in's journal: captured documents in their order, and how far each task has come.

Invariants, also after `kill -9`: an append and the capture's checkpoint commit together and are on disk when
`append` returns; offsets only go up; a document is read with the bytes that were written. So a capture may
acknowledge its source after `append`, and a materialisation that died reads everything behind its last checkpoint
again.

It is one SQLite file, which several processes may open: one writer at a time, readers beside it. Fit for tests and
for trying things, as large as a disk; it is no Gazette.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sophia import sql
from sophia.documents import uuid_clock

Q = sql.load("journal")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Entry:
    """A captured document; `clock` is that of its UUID."""

    offset: int
    collection: str
    clock: int
    document: dict[str, Any]


class Journal:
    """A connection to the journal at `path`, made if it is not there; for one thread. A context manager."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._connection.execute("PRAGMA journal_mode = WAL")
        # Acknowledging what an operating system's crash could still take back would lose changes.
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(Q["set_up"])
        self._connection.execute(Q["set_up_checkpoints"])

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def append(
        self,
        documents: Sequence[tuple[str, dict[str, Any]]],
        task: str | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        """Write (collection, stamped document) pairs and, if given, the capture's checkpoint, in one transaction."""
        rows = [
            {"collection": name, "clock": uuid_clock(document["_meta"]["uuid"]), "document": _encode(document)}
            for name, document in documents
        ]
        with self._transaction():
            self._connection.executemany(Q["append"], rows)
            if task is not None:
                self._connection.execute(Q["set_checkpoint"], {"task": task, "state": _encode(state or {})})

    def read(self, after: int, collections: Sequence[str], limit: int) -> list[Entry]:
        """At most `limit` documents of these collections behind offset `after`."""
        params = {"after": after, "collections": _encode(list(collections)), "limit": limit}
        return [
            Entry(n, name, clock, json.loads(text))
            for n, name, clock, text in self._connection.execute(Q["read"], params)
        ]

    def last_clock(self) -> int:
        """The highest clock of all documents, or 0."""
        return int(self._connection.execute(Q["last_clock"]).fetchone()[0] or 0)

    def checkpoint(self, task: str) -> dict[str, Any]:
        """A task's state; empty if it never stored one."""
        row = self._connection.execute(Q["checkpoint"], {"task": task}).fetchone()
        state: dict[str, Any] = json.loads(row[0]) if row else {}
        return state

    def set_checkpoint(self, task: str, state: dict[str, Any]) -> None:
        """Store a task's state durably."""
        self._connection.execute(Q["set_checkpoint"], {"task": task, "state": _encode(state)})

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.rollback()
            raise
        self._connection.commit()
