"""The stand-in as a process of its own, to be killed: capture in a thread, materialisation in another."""

from __future__ import annotations

import os
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path

from sophia import failpoints
from sophia.catalog import default_path, load
from sophia.database.connect import connect
from sophia.estuary.source.reread import reread_collection
from sophia.estuary.source.sweep import sweep
from sophia.estuary.stand_in.materialize import Materialization, Materializer
from sophia.estuary.stand_in.source_postgres import Captured, PostgresEndpoint, SourcePostgres
from sophia.estuary.stand_in.triggers import parse_triggers
from sophia.estuary.stand_in.webhook import Endpoint
from sophia.settings import load_settings
from tests.estuary.scene import ITEMS, NAME, TASK, estuary_catalog

TRIGGER = {"payloadTemplate": '{"max":"{{flow_published_at_max}}"}'}


def main(url: str, slot: str, journal: Path, address: str, point: str) -> None:
    """Run until killed; at the failpoint of that name it dies as by `kill -9`."""

    def die(name: str) -> None:
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.arm(die)
    stop = threading.Event()
    triggers = parse_triggers({"config": {"sophia": TRIGGER | {"url": f"{address}events"}}})
    capture = SourcePostgres(PostgresEndpoint(url, (Captured("public.items", NAME),), slot), journal)
    spec = Materialization(TASK, Endpoint(address), (ITEMS,), triggers)
    threading.Thread(target=capture.run, args=(stop,), daemon=True).start()
    with Materializer(spec, journal) as stand_in:
        stand_in.run(stop)


def look(url: str, point: str) -> None:
    """Read rows of `items` again, or sweep it, and die at the failpoint."""

    def die(name: str) -> None:
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.arm(die)
    os.environ["SOPHIA_ESTUARY_SOURCE_URL"] = url
    catalog = estuary_catalog(load(default_path()))
    with connect(url, "sophia-test") as connection:
        if point.startswith("estuary.reread."):
            reread_collection(connection, catalog.collection("items"), url)
        else:
            sweep(connection, catalog, "items", load_settings(), before=datetime.now(UTC))
