"""What goes wrong: each fault is a function that does it once. False means that it could not be done just now."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from sophia import inbox
from sophia.documents import Clock
from tests.chaos import workload
from tests.chaos.points import POINTS
from tests.chaos.processes import Process, Processes, Server
from tests.chaos.tables import MODELS, TABLES
from tests.chaos.workers import JOBS, SLOT

Connection = psycopg.Connection[Any]
# The indexes that get further versions.
PROMOTED = ("notes", "logs")


@dataclass
class Scene:
    """What faults act upon.

    Attributes:
        tampered_with: index and model of a version whose store was changed by hand, which a deep repair can mend.
        changes: rows that a fault changed in the source.
    """

    server: Server
    processes: Processes
    rng: random.Random
    kind: Kind
    tampered_with: dict[str, str] | None = None
    changes: int = 0
    log: list[str] = field(default_factory=list)

    def pick(self, *roles: str) -> Process | None:
        """A running worker of one of these roles."""
        found = [process for role in roles for process in self.processes.of(role)]
        return self.rng.choice(found) if found else None


def kill_capture(scene: Scene) -> bool:
    return _kill(scene, "capture")


def kill_indexer(scene: Scene) -> bool:
    return _kill(scene, "indexer")


def kill_job(scene: Scene) -> bool:
    """A repair, promotion, rollback or retirement, started if none runs."""
    if scene.pick(*JOBS) is None:
        scene.rng.choice((repair, promote))(scene)
        scene.processes.wait(scene.rng.uniform(0.02, 0.5))
    return _kill(scene, *JOBS)


def kill_server(scene: Scene) -> bool:
    """kill -9 of the postmaster; it is started again soon, or after a while."""
    scene.server.kill()
    scene.processes.kills["postgres"] += 1
    scene.processes.wait(scene.rng.choice((0.0, 0.2, 0.6)))
    scene.server.start()
    return True


def kill_backend(scene: Scene) -> bool:
    """kill -9 of one server process, upon which the postmaster ends all others and recovers."""
    with scene.server.connect() as connection:
        pid = _backend(connection, scene.rng)
    if pid is None:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    scene.processes.kills["backend"] += 1
    return True


def terminate_connections(scene: Scene) -> bool:
    with scene.server.connect() as connection:
        pids = [_backend(connection, scene.rng) for _ in range(scene.rng.randint(1, 4))]
        connection.execute("SELECT pg_terminate_backend(p) FROM unnest(%s::int[]) p WHERE p IS NOT NULL", [pids])
    return any(pids)


def pause_capture(scene: Scene) -> bool:
    """It sleeps longer than its successor needs to take over, and wakes up with its own idea of the world."""
    process = scene.pick("capture")
    if process is None:
        return False
    scene.processes.pause(process, scene.rng.uniform(1.0, 3.0))
    if scene.rng.random() < 0.8:
        _terminate_sender(scene)
    return True


def pause_indexer(scene: Scene) -> bool:
    """It sleeps longer than its lease."""
    return _pause(scene, "indexer")


def pause_job(scene: Scene) -> bool:
    return _pause(scene, *JOBS)


def second_capture(scene: Scene) -> bool:
    """Two captures at once: who gets the slot is left to chance."""
    if len(scene.processes.of("capture", paused=True)) > 2:
        return False
    scene.processes.start("capture")
    if scene.rng.random() < 0.7:
        _terminate_sender(scene)
    return True


def second_indexer(scene: Scene) -> bool:
    if len(scene.processes.of("indexer", paused=True)) > 2:
        return False
    scene.processes.start("indexer")
    return True


def repair(scene: Scene, **fields: Any) -> bool:
    """A repair run beside all else, as a Dagster run or `sophia repair` does it."""
    index, model = scene.rng.choice(
        _versions(scene, ("building", "serving", "retiring")) or [(TABLES[0].name, MODELS[0])]
    )
    fields = {"index": index, "model": model, "deep": scene.rng.random() < 0.7} | fields
    scene.processes.start("repair", **fields)
    return True


def promote(scene: Scene, **fields: Any) -> bool:
    """Build the version that does not serve, prove it, let it serve."""
    index = scene.rng.choice(PROMOTED)
    serving = dict(_versions(scene, ("serving",))).get(index, MODELS[0])
    scene.processes.start("promote", **{"index": index, "model": MODELS[serving == MODELS[0]]} | fields)
    return True


def rollback(scene: Scene, **fields: Any) -> bool:
    """Back to the version that served before."""
    versions = _versions(scene, ("retiring",))
    if not versions:
        return promote(scene, **fields)
    scene.processes.start("rollback", index=scene.rng.choice(versions)[0], **fields)
    return True


def retire(scene: Scene, **fields: Any) -> bool:
    """End a version that does not serve."""
    versions = _versions(scene, ("building", "retiring"))
    if not versions:
        return promote(scene)
    index, model = scene.rng.choice(versions)
    scene.processes.start("retire", index=index, model=model, **fields)
    return True


def erase(scene: Scene, **fields: Any) -> bool:
    """Erase a deleted document, while its key may be on its way back."""
    scene.processes.start("erase", index=scene.rng.choice(TABLES).name, **fields)
    return True


def ask_reread(scene: Scene) -> bool:
    """Dead letters of some rows, and the wish to have the rows read again: `sophia dead-letters --replay`."""
    table = scene.rng.choice(TABLES)
    with scene.server.connect() as connection:
        keys = connection.execute(
            "SELECT d.key, d.clock FROM sophia.documents d JOIN sophia.collections c ON c.id = d.collection_id "
            "WHERE c.name = %s AND NOT d.deleted ORDER BY md5(d.key || %s) LIMIT %s",
            [table.name, str(scene.rng.random()), scene.rng.randint(1, 20)],
        ).fetchall()
        try:
            for key, clock in keys:
                inbox.park(connection, table.name, key, stage="capture", reason="chaos", clock=Clock(*clock))
            inbox.request_reread(connection, table.name)
        except psycopg.OperationalError:
            return False
    return bool(keys)


def drop_slot(scene: Scene) -> bool:
    """The slot vanishes while no capture holds it."""
    return _with_free_slot(scene, "SELECT pg_drop_replication_slot(%s)")


def advance_slot(scene: Scene) -> bool:
    """Someone else reads the slot: the changes in between are gone."""
    return _with_free_slot(scene, "SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())")


def recreate_table(scene: Scene) -> bool:
    """DROP TABLE and CREATE TABLE: it silently leaves the publication."""
    table = scene.rng.choice(TABLES)
    try:
        with scene.server.connect() as connection:
            scene.changes += workload.recreate(connection, table.name, scene.rng)
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected, psycopg.OperationalError):
        return False
    return True


def tamper(scene: Scene) -> bool:
    """Rows of a store are deleted, edited and added behind Sophia's back."""
    rng = scene.rng
    with scene.server.connect() as connection:
        versions = connection.execute(
            "SELECT store_name, index_name, model FROM sophia.index_versions WHERE state <> 'retired' ORDER BY id"
        ).fetchall()
        if not versions:
            return False
        store, index, model = rng.choice(versions)
        table = f"indexes.{store}"
        some = f"id IN (SELECT id FROM {table} ORDER BY md5(id::text || '{rng.random()}') LIMIT {rng.randint(1, 20)})"
        statement = {
            "delete": f"DELETE FROM {table} WHERE {some}",
            "text": f"UPDATE {table} SET content = content || ' and more' WHERE {some}",
            "vector": f"UPDATE {table} SET embedding = (SELECT embedding FROM {table} LIMIT 1) WHERE {some}",
            "add": f"INSERT INTO {table} (id, key, bucket, chunk, span, content, content_hash, embedding, metadata, "
            f"clock, run) SELECT gen_random_uuid(), key, bucket, chunk + 50, span, content, content_hash, embedding, "
            f"metadata, clock, run FROM {table} WHERE {some} ON CONFLICT DO NOTHING",
            "ghost": f"INSERT INTO {table} (id, key, bucket, chunk, span, content, content_hash, embedding, metadata, "
            f"clock, run) SELECT gen_random_uuid(), '[\"ghost ' || gen_random_uuid() || '\"]', bucket, 0, span, "
            f"content, content_hash, embedding, metadata, clock, run FROM {table} WHERE {some} ON CONFLICT DO NOTHING",
        }
        kind = rng.choice(sorted(statement))
        try:
            rows = connection.execute(statement[kind]).rowcount
        except (psycopg.OperationalError, psycopg.errors.UndefinedTable):
            return False
        scene.log.append(f"    {kind} {rows} rows of {table}")
    scene.tampered_with = {"index": index, "model": model}
    return bool(rows > 0)


def short_timeouts(scene: Scene) -> bool:
    """For a while every new connection has time-outs that its statements do not keep."""
    role = "ALTER ROLE CURRENT_USER"
    with scene.server.connect() as connection:
        connection.execute(f"{role} SET statement_timeout = '{scene.rng.choice((5, 20, 100))}ms'")
        connection.execute(f"{role} SET lock_timeout = '{scene.rng.choice((1, 10, 50))}ms'")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'sophia%'"
        )

    def reset() -> None:
        with scene.server.connect() as connection:
            connection.execute(f"{role} RESET statement_timeout")
            connection.execute(f"{role} RESET lock_timeout")
            # Whoever connected meanwhile keeps the short ones for as long as the session lives.
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'sophia%'"
            )

    scene.processes.later(scene.rng.uniform(0.5, 1.5), reset)
    return True


# With how often each is drawn, to each other.
FAULTS: dict[Callable[[Scene], bool], int] = {
    kill_capture: 16,
    kill_indexer: 16,
    kill_job: 12,
    kill_server: 5,
    kill_backend: 4,
    terminate_connections: 6,
    pause_capture: 4,
    pause_indexer: 5,
    pause_job: 3,
    second_capture: 4,
    second_indexer: 5,
    repair: 5,
    promote: 4,
    rollback: 3,
    retire: 2,
    erase: 3,
    ask_reread: 3,
    drop_slot: 3,
    advance_slot: 2,
    recreate_table: 4,
    tamper: 4,
    short_timeouts: 2,
}
BY_NAME: dict[str, Callable[..., bool]] = {fault.__name__: fault for fault in FAULTS}


@dataclass(frozen=True)
class Kind:
    """What may happen in a round: the less there is that mends in passing, the less goes unseen.

    Attributes:
        live_only: only the live lane works: no mass changes, no snapshots, no repairs.
        tampering: stores are changed by hand. If not, the indexes must be right without the verification that runs
            beside, and a document that it had to mend counts as a loss.
    """

    live_only: bool
    tampering: bool

    def allows(self, fault: Callable[..., bool]) -> bool:
        """Whether a fault belongs into such a round."""
        return (self.tampering or fault is not tamper) and not (self.live_only and fault in MENDING)

    def points(self) -> list[str]:
        """The failpoints that workers may be led to."""
        return sorted(
            name
            for name, point in POINTS.items()
            if (not point.need or self.allows(BY_NAME[point.need]))
            and not (self.live_only and set(point.roles) <= set(JOBS))
        )


KINDS = (Kind(live_only=True, tampering=False), Kind(False, False), Kind(False, True))
# Each compares whole shards, or begins with a snapshot that does.
MENDING = (kill_job, pause_job, repair, promote, rollback, retire, drop_slot, advance_slot, recreate_table)


def plan(rng: random.Random, count: int, kind: Kind) -> list[str]:
    """Names of the faults of a round."""
    weights = {fault: weight for fault, weight in FAULTS.items() if kind.allows(fault)}
    return [fault.__name__ for fault in rng.choices(list(weights), list(weights.values()), k=count)]


def aim(scene: Scene, name: str) -> bool:
    """Bring about that a worker dies at a failpoint: do what leads there, and arm the next worker that may pass it."""
    point, processes = POINTS[name], scene.processes
    role = scene.rng.choice([role for role in point.roles if not (scene.kind.live_only and role in JOBS)])
    before = processes.hits[name]
    if role not in JOBS:
        processes.next_arm[role] = name
    if point.need:
        BY_NAME[point.need](scene)
    if role == "repair":
        repair(scene, arm=(name, 1), **(scene.tampered_with or {}), deep=True)
    elif role in JOBS:
        BY_NAME[role](scene, arm=(name, 1))
    elif role in processes.next_arm:
        _kill(scene, role)
    return processes.wait(point.seconds, lambda: processes.hits[name] > before)


def _versions(scene: Scene, states: tuple[str, ...]) -> list[tuple[str, str]]:
    """Index and model of the versions in these states."""
    with scene.server.connect() as connection:
        rows = connection.execute(
            "SELECT index_name, model FROM sophia.index_versions WHERE state = ANY(%s) ORDER BY id", [list(states)]
        )
        return [(index, model) for index, model in rows]


def _kill(scene: Scene, *roles: str) -> bool:
    process = scene.pick(*roles)
    if process is None:
        return False
    scene.processes.kill(process)
    return True


def _pause(scene: Scene, *roles: str) -> bool:
    process = scene.pick(*roles)
    if process is None:
        return False
    scene.processes.pause(process, scene.rng.uniform(1.2, 3.0))
    return True


def _backend(connection: Connection, rng: random.Random) -> int | None:
    rows = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name ~ '^(sophia|chaos-workload)' ORDER BY pid"
    ).fetchall()
    return int(rng.choice(rows)[0]) if rows else None


def _terminate_sender(scene: Scene) -> None:
    with scene.server.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots "
            "WHERE slot_name = %s AND active_pid IS NOT NULL",
            [SLOT],
        )


def _with_free_slot(scene: Scene, statement: str) -> bool:
    for process in scene.processes.of("capture", paused=True):
        scene.processes.kill(process)
    try:
        _terminate_sender(scene)
        with scene.server.connect() as connection:
            connection.execute(statement, [SLOT])
    except psycopg.Error:
        # In use again already, or not made yet.
        return False
    return True
