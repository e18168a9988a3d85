"""Documents as Estuary sends them, and an intake that really serves, in a thread or in a process of its own."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from sophia.catalog import Catalog
from sophia.catalog.models import Collection, Index
from sophia.database import Database
from sophia.estuary.intake.documents import Feed
from sophia.services.intake.server import serve
from sophia.settings import IntakeSettings, Settings
from tests.ports import free_port
from tests.service_process import START_SECONDS, answers
from tests.waiting import until

NAME = "sophia/documents"
FEED = Feed("documents", NAME, ("id",), ("title", "body"))
# 100 ns since 1582; each number is a microsecond later, as Estuary's clock ticks.
_EPOCH = 0x1F0_0000_0000_0000


def uuid_of(number: int) -> str:
    """The UUID of the document with that place in time."""
    time = _EPOCH + 10 * number
    return str(
        uuid.UUID(fields=(time & 0xFFFFFFFF, time >> 32 & 0xFFFF, time >> 48 & 0xFFF | 0x1000, 0x80, 0, 1 << 40))
    )


def position_of(number: int) -> int:
    """Its clock."""
    return (_EPOCH + 10 * number) << 4


def document(
    key: Any, number: int, op: str = "c", before: dict[str, Any] | None = None, **columns: Any
) -> dict[str, Any]:
    """A change of a row, `number` being its place in time."""
    meta: dict[str, Any] = {
        "op": op,
        "source": {"ts_ms": 1_700_000_000_000 + number, "schema": "public", "table": "documents", "txid": 7},
        "uuid": uuid_of(number),
    }
    meta["source"]["loc"] = [number, number, number]
    if before is not None:
        meta["before"] = before
    return {"_meta": meta, "id": key, **columns}


def body(*documents: Any) -> bytes:
    """A request's body; what is bytes already goes in as it is."""
    parts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in documents]
    return b"[" + b",".join(parts) + b"]"


def fed_catalog(catalog: Catalog, names: Sequence[str] = ("documents",), history: Sequence[str] = ()) -> Catalog:
    """The catalog in which these collections come from Estuary, in the local profile, with an index over each."""
    source = next(source for source in catalog.sources if source.kind == "estuary")
    model: Collection = catalog.collection("documents")
    index: Index = catalog.index("documents")
    collections = [
        model.model_copy(
            update={
                "name": name,
                "estuary": f"sophia/{name}",
                "key": ("id",),
                "history": name in history,
                "source": model.source.model_copy(update={"local": source.name}),
            }
        )
        for name in names
    ]
    indexes = [
        index.model_copy(
            update={"name": name, "collection": name, "template": "{title} {body}", "metadata": (), "shards": 2}
        )
        for name in names
    ]
    return catalog.model_copy(update={"collections": tuple(collections), "indexes": tuple(indexes)})


@contextlib.contextmanager
def intake(settings: Settings, catalog: Catalog, database: Database, **group: Any) -> Iterator[str]:
    """A service on a free port of 127.0.0.1; yields its address and ends it in order."""
    port = free_port()
    settings = settings.model_copy(update={"intake": IntakeSettings(port=port, **group)})
    stop = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            serve(settings, catalog, database, stop)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: not thread.is_alive() or answers(address), "the service", START_SECONDS)
        if failed:
            raise failed[0]
        yield address
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive(), "the service does not stop"
