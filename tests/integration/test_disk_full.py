"""A disk that fills up under the embedded server: nothing is lost, nothing half-written, and it goes on afterwards."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from sophia.capture import Binding, Capture, CaptureSource
from sophia.database import Database, migrate
from sophia.database.connect import ensure_database
from sophia.database.embedded import EmbeddedPostgres
from sophia.errors import SophiaError
from sophia.services.worker import Loop, keep_running
from tests.integration.conftest import QUICK, current
from tests.waiting import until

MEGABYTES = 192


@pytest.fixture
def small_disk(short_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system; run the tests as root, as CI does")
    disk = short_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m,mode=755", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leave no free block."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as handle:
        try:
            while True:
                handle.write(b"\0" * 65_536)
        except OSError:
            pass
    return ballast


def test_full_disk_loses_nothing(small_disk: Path) -> None:
    server = EmbeddedPostgres(small_disk / "postgres")
    ensure_database(server.url(), "sophia")
    database = Database(server.url("sophia"), server)
    migrate(database.url)
    with database.connect() as connection:
        connection.execute("CREATE TABLE items (id int PRIMARY KEY, body text)")
        connection.execute("INSERT INTO items SELECT n, 'first' FROM generate_series(1, 50) n")
    source = CaptureSource("test", database.url, "test_publication", "disk_slot", (Binding("public.items", "items"),))
    capture = Capture(source, database, QUICK)
    stop = threading.Event()
    thread = threading.Thread(
        target=keep_running, args=(Loop("capture", capture.run, capture.ready), stop), daemon=True
    )
    thread.start()
    try:
        with database.connect() as connection:
            until(lambda: len(current(connection, "items")) == 50)
        ballast = fill(small_disk)
        refused = 0
        for number in range(51, 4_000):
            # Whatever the server says was committed must arrive; what it refused must not.
            try:
                with psycopg.connect(database.url, autocommit=True, connect_timeout=5) as writer:
                    writer.execute("INSERT INTO items VALUES (%s, %s)", [number, os.urandom(20_000).hex()])
            except psycopg.Error:
                refused += 1
                if refused >= 3:
                    break
        assert refused >= 3, "the disk was never full"
        ballast.unlink()

        def level() -> bool:
            try:
                with database.connect() as connection:
                    wanted = {f"[{row[0]}]" for row in connection.execute("SELECT id FROM items")}
                    return set(current(connection, "items")) == wanted and len(wanted) >= 50
            except (psycopg.Error, SophiaError):
                return False

        until(level, "inbox and table to agree")
        with database.connect() as connection:
            connection.execute("INSERT INTO items VALUES (5000, 'after')")
            until(lambda: "[5000]" in current(connection, "items"), "the change after")
    finally:
        stop.set()
        thread.join(60)
        server.release()
        until(lambda: not (small_disk / "postgres" / "postmaster.pid").exists(), "the server to stop")
