"""The processes of a chaos run: a PostgreSQL server of its own, and the workers, started again when they end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from sophia.database import migrate
from sophia.database.connect import ensure_database
from sophia.database.embedded import EmbeddedPostgres
from sophia.errors import TemporaryError
from tests.chaos.points import POINTS
from tests.chaos.workers import JOBS, Spec
from tests.chaos.zygote import Zygote

# Checkpoints as often as on a busy server, so that recovery after a kill is short. Durability stays the default.
SERVER_SETTINGS = {
    "recovery_init_sync_method": "'syncfs'",
    "max_wal_size": "'256MB'",
    "checkpoint_timeout": "'60s'",
    "log_min_messages": "fatal",
}
ALWAYS = ("capture", "indexer")


class Server:
    """An embedded PostgreSQL that is killed and started again, fsync on, in a scratch folder."""

    def __init__(self) -> None:
        # A unix socket's path may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="sc", dir="/tmp"))
        self.folder.chmod(0o755)
        self._postgres = EmbeddedPostgres(self.folder / "postgres")
        with psycopg.connect(self._postgres.url(), autocommit=True) as connection:
            for name, value in SERVER_SETTINGS.items():
                connection.execute(f"ALTER SYSTEM SET {name} = {value}")
            connection.execute("SELECT pg_reload_conf()")
        ensure_database(self._postgres.url(), "chaos")
        self.url = self._postgres.url("chaos")
        migrate(self.url)

    def connect(self) -> psycopg.Connection[Any]:
        """A connection for the driver or the oracle, as soon as the server answers."""
        deadline = time.monotonic() + 60
        while True:
            try:
                connection = psycopg.connect(self.url, autocommit=True, application_name="chaos-driver")
                connection.execute("SET statement_timeout = 0")
                connection.execute("SET lock_timeout = '3s'")
                return connection
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                # As Sophia's own processes do: one that was killed a moment ago may have been taken for alive.
                with contextlib.suppress(TemporaryError):
                    self._postgres.ensure_running()
                time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL the postmaster."""
        _signal(self._postgres.pid(), signal.SIGKILL)

    def start(self) -> None:
        """Start it again; what the killed one left running may take a moment to end."""
        deadline = time.monotonic() + 60
        while True:
            try:
                self._postgres.ensure_running()
                return
            except TemporaryError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def close(self) -> None:
        """Stop it and remove its folder."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(self._postgres.pid(), signal.SIGQUIT)
        self._postgres.release()
        deadline = time.monotonic() + 30
        while self.folder.exists() and time.monotonic() < deadline:
            shutil.rmtree(self.folder, ignore_errors=True)
            time.sleep(0.1)


@dataclass
class Process:
    """A worker that runs. `resume_at` is set while it is stopped by SIGSTOP."""

    pid: int
    role: str
    armed: str | None
    slow: bool = False
    resume_at: float | None = None
    killed: bool = False


class Processes:
    """Starts workers, keeps one capture and one indexer running, and counts who died of what.

    Attributes:
        kills: processes ended by SIGKILL, by role; failpoints included.
        ends: processes that ended by an error of their own, by role.
    """

    def __init__(self, server: Server, rng: random.Random, earlier_hits: Counter[str]) -> None:
        self.server = server
        self.rng = rng
        self.running: dict[int, Process] = {}
        self.kills: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.healthy = False
        self.live_only = False
        self.next_arm: dict[str, str] = {}
        self._earlier = earlier_hits
        self._restart_at: dict[str, float] = {}
        self._resets: list[tuple[float, Callable[[], None]]] = []
        self._zygote = Zygote()

    # ---- start and end -----------------------------------------------------------------------------------

    def start(self, role: str, **fields: Any) -> Process:
        """Start a worker, armed at random unless `arm` says otherwise."""
        rng = self.rng
        arm = fields.pop("arm", None) or self._arm(role)
        folder = self.server.folder
        spec = Spec(
            role,
            self.server.url,
            hits=str(folder / "hits"),
            calls=str(folder / "calls"),
            log=str(folder / "workers.log"),
            arm=arm,
            # A slow job and a quick indexer meet at the same keys.
            delay=0.0 if self.healthy else rng.choice((0.0, 0.05, 0.3) if role in JOBS else (0.0, 0.0, 0.0, 0.05, 0.3)),
            capture={
                "batch_documents": rng.choice((5, 50, 500, 2_000)) if not self.healthy else 2_000,
                "bulk_transaction": 1_000_000 if self.live_only else rng.choice((3, 50, 400)),
            },
            indexer={
                "live_documents": rng.choice((4, 64, 256)) if not self.healthy else 256,
                "bulk_documents": rng.choice((10, 256, 1_000)) if not self.healthy else 1_000,
            },
            **fields,
        )
        slow = spec.delay > 0 or spec.capture["batch_documents"] < 50
        process = Process(self._zygote.start(dataclasses.asdict(spec)), role, arm[0] if arm else None, slow)
        self.running[process.pid] = process
        return process

    def _arm(self, role: str) -> tuple[str, int] | None:
        if self.healthy:
            return None
        if role in self.next_arm:
            return self.next_arm.pop(role), 1
        names = sorted(name for name, point in POINTS.items() if role in point.roles)
        if not names or self.rng.random() < 0.35:
            return None
        self.rng.shuffle(names)
        name = min(names[: max(2, len(names) // 2)], key=self.count)
        return name, self.rng.choice((1, 1, 1, 2, 3, 8))

    @property
    def hits(self) -> Counter[str]:
        """Failpoints at which a worker killed itself, which it wrote down just before."""
        file = self.server.folder / "hits"
        return Counter(file.read_text().split()) if file.exists() else Counter()

    def count(self, name: str) -> int:
        """How often a failpoint has killed so far, earlier servers included."""
        return self._earlier[name] + self.hits[name]

    def of(self, role: str, *, paused: bool = False) -> list[Process]:
        """Running workers of a role, those that are stopped left out unless wanted."""
        return [p for p in self.running.values() if p.role == role and (paused or p.resume_at is None)]

    def kill(self, process: Process) -> None:
        """SIGKILL a worker."""
        process.killed = True
        self.kills[process.role] += 1
        _signal(process.pid, signal.SIGKILL)

    def pause(self, process: Process, seconds: float) -> None:
        """SIGSTOP a worker for a while; another one takes its place meanwhile, and stays."""
        _signal(process.pid, signal.SIGSTOP)
        process.resume_at = time.monotonic() + seconds

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after a while, or at the latest when it gets quiet."""
        self._resets.append((time.monotonic() + seconds, action))

    # ---- time goes by ------------------------------------------------------------------------------------

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time go by, keeping what must run running. Returns whether `until` came true."""
        deadline = time.monotonic() + seconds
        while True:
            self.tick()
            if until():
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.03)

    def tick(self) -> None:
        """Note who ended, wake whom is due, start what is missing."""
        now = time.monotonic()
        for pid, status in self._zygote.ended():
            process = self.running.pop(pid)
            if status == -signal.SIGKILL and not process.killed:
                self.kills[process.role] += 1
            elif status > 0:
                self.ends[process.role] += 1
            elif status == 0:
                self.finished[process.role] += 1
        for process in list(self.running.values()):
            if process.resume_at is not None and now >= process.resume_at:
                self._resume(process)
        for at, action in list(self._resets):
            if now >= at:
                self._resets.remove((at, action))
                action()
        for role in ALWAYS:
            if self.of(role):
                self._restart_at.pop(role, None)
            elif now >= self._restart_at.setdefault(role, now + self.rng.choice((0.0, 0.0, 0.1, 0.3))):
                self.start(role)

    def _resume(self, process: Process) -> None:
        process.resume_at = None
        _signal(process.pid, signal.SIGCONT)

    def begin(self, *, live_only: bool) -> None:
        """Faults may begin. `live_only`: no transaction is large enough for the bulk lane."""
        self.healthy = False
        if live_only != self.live_only:
            self.live_only = live_only
            for process in self.of("capture"):
                self.kill(process)

    def recover(self) -> None:
        """The end of all faults: everyone awake, nobody armed or slow, settings as they were; the others go on."""
        self.healthy = True
        self.next_arm.clear()
        for process in list(self.running.values()):
            if process.resume_at is not None:
                self._resume(process)
            if process.armed is not None or process.slow:
                self.kill(process)
        for _, action in self._resets:
            action()
        self._resets.clear()

    def close(self) -> None:
        """End all workers."""
        self._zygote.close()


def _signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have died a moment ago of something else."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
