"""Rounds: work with faults for a while, then quiet, then the verdict."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from sophia import inbox
from sophia.indexing.verify import verify
from sophia.indexing.versions import active_versions
from sophia.stores import PgvectorStore
from tests.chaos import faults, oracle, workload
from tests.chaos.embedder import ChaosEmbedder
from tests.chaos.processes import Processes, Server
from tests.chaos.tables import TABLES
from tests.chaos.workers import JOBS, SOURCE

STUCK_SECONDS = 45.0

# What is still on its way, each as a line; nothing means that the index may be compared.
OUTSTANDING = """
SELECT 'capture: no position' WHERE NOT EXISTS (SELECT 1 FROM sophia.captures WHERE source = %(source)s)
UNION ALL
SELECT 'capture: at ' || COALESCE(confirmed_lsn::text, 'nothing') FROM sophia.captures
WHERE source = %(source)s AND (confirmed_lsn IS NULL OR confirmed_lsn < %(lsn)s::pg_lsn)
UNION ALL
SELECT 'snapshot: ' || name FROM unnest(%(names)s::text[]) name
WHERE NOT EXISTS (SELECT 1 FROM sophia.captured_tables t JOIN sophia.collections c ON c.id = t.collection_id
                  WHERE c.name = name AND t.complete AND t.relation_oid = to_regclass('app.' || name)::oid::bigint)
UNION ALL
SELECT 'incomplete: ' || c.name || ' ' || count(*) FROM sophia.documents d
JOIN sophia.collections c ON c.id = d.collection_id WHERE d.missing <> '{}' GROUP BY c.name
UNION ALL
SELECT 'version: none of ' || name FROM unnest(%(names)s::text[]) name
WHERE NOT EXISTS (SELECT 1 FROM sophia.index_versions v WHERE v.index_name = name AND v.state = 'serving')
UNION ALL
SELECT 'live: ' || v.store_name FROM sophia.index_versions v
WHERE v.state <> 'retired' AND EXISTS (SELECT 1 FROM sophia.documents d WHERE d.collection_id = v.collection_id
                                       AND NOT d.bulk AND d.position > v.position)
UNION ALL
SELECT 'bulk: ' || v.store_name || ' shard ' || s.shard FROM sophia.index_versions v
JOIN sophia.collections c ON c.id = v.collection_id JOIN sophia.shards s ON s.version_id = v.id
WHERE v.state <> 'retired' AND s.position < GREATEST(c.bulk_position, 0)
UNION ALL
SELECT 'dead letter: ' || stage || ' ' || COALESCE(key, '') || ' ' || reason FROM sophia.dead_letters
"""


@dataclass
class Outcome:
    """A round. `losses` holds differences by kind; anything in it is a failure."""

    number: int
    faults: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    changes: int = 0
    embedded: int = 0
    rows: int = 0
    chunks: int = 0
    seconds: float = 0.0
    quiet_seconds: float = 0.0
    losses: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)


class Driver:
    """Runs rounds against one server; a context manager that ends everything.

    Args:
        first: number of the first round, which decides the first rows too.
        earlier: hits of failpoints in earlier sessions, so that what was hit least is aimed at first.
    """

    def __init__(self, seed: str, first: int = 0, earlier: Counter[str] | None = None) -> None:
        self.seed = seed
        self._rng = random.Random(seed)
        self.server = Server()
        with self.server.connect() as connection:
            for table in TABLES:
                workload.create(connection, table)
            workload.fill_all(connection, f"{seed}/{first}/fill")
        self.processes = Processes(self.server, self._rng, earlier or Counter())

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *exception: object) -> None:
        self.processes.close()
        self.server.close()

    def round(self, number: int, steps: int, *, bulk: float = 0.15) -> Outcome:
        """One round of `steps` faults, each with a kill at the failpoint that was hit least.

        What a seed does is always the same; when it hits is not. `bulk` is the share of statements over many rows.
        Rounds take turns in their kind.
        """
        kind = faults.KINDS[number % len(faults.KINDS)]
        mended = self._mended()
        outcome = Outcome(number)
        began = time.monotonic()
        rng = random.Random(f"{self.seed}/{number}")
        self._rng.seed(f"{self.seed}/{number}/processes")
        scene = faults.Scene(self.server, self.processes, rng, kind)
        before = self._counts()
        self.processes.begin(live_only=kind.live_only)
        work = workload.Workload(self.server.url, f"{self.seed}/{number}", bulk=0.0 if kind.live_only else bulk)
        for name in faults.plan(rng, steps, kind):
            self._fault(scene, outcome, name)
            self.processes.wait(rng.choice((0.0, 0.05, 0.1, 0.3, 0.6)))
            names = kind.points()
            rng.shuffle(names)
            self._fault(scene, outcome, "aim", min(names, key=self.processes.count))
        work.stop()
        outcome.changes = work.changes + scene.changes
        outcome.log += [f"  {kind} x{count}" for kind, count in sorted(work.statements.items())]
        self.processes.recover()
        quiet = time.monotonic()
        self._quiet(scene, outcome)
        if not kind.tampering:
            for version, found in self._mended().items():
                if found > mended.get(version, 0):
                    self._lose(outcome, "mended", f"{found - mended.get(version, 0)} documents of version {version}")
        outcome.quiet_seconds = time.monotonic() - quiet
        outcome.seconds = time.monotonic() - began
        after = self._counts()
        for counter in ("kills", "hits", "ends"):
            setattr(outcome, counter, after[counter] - before[counter])
        outcome.embedded = after["embedded"]["texts"] - before["embedded"]["texts"]
        return outcome

    def _fault(self, scene: faults.Scene, outcome: Outcome, name: str, point: str | None = None) -> None:
        scene.log = []
        try:
            done = faults.aim(scene, point) if point is not None else faults.BY_NAME[name](scene)
        except psycopg.OperationalError:
            # The server still dies of the fault before; the driver's own connection went with it.
            done = False
        outcome.log.append(f"  {'' if done else '(not) '}{name} {point or ''}".rstrip())
        outcome.log += scene.log
        if done and point is None:
            outcome.faults[name] += 1

    # ---- quiet -------------------------------------------------------------------------------------------

    def _quiet(self, scene: faults.Scene, outcome: Outcome) -> None:
        if not self._level(outcome):
            return
        if scene.tampered_with is not None:
            self._deep_repair(outcome)
            if not self._level(outcome):
                return
        began = time.monotonic()
        with self.server.connect() as connection:
            paid = self._embedded()
            verdict = oracle.judge(connection)
            outcome.rows, outcome.chunks = verdict.rows, verdict.chunks
            outcome.losses += verdict.counts
            outcome.log += [f"  {example}" for example in verdict.examples]
            self._prove(connection, outcome, verdict.exact)
        outcome.log.append(f"  compared in {time.monotonic() - began:.1f} s")
        self.processes.wait(0.3)
        if self._embedded() != paid:
            self._lose(outcome, "restless", f"{self._embedded() - paid} texts were embedded in the quiet")

    def _level(self, outcome: Outcome) -> bool:
        """Wait until nothing is on its way any more, or until nothing has moved for too long."""
        began = moved = time.monotonic()
        last: Any = None
        with self.server.connect() as connection:
            # As a person would do who finds dead letters.
            inbox.request_reread(connection)
            row = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
            assert row is not None
            params = {"source": SOURCE, "lsn": row[0], "names": [table.name for table in TABLES]}
            while time.monotonic() - moved < STUCK_SECONDS:
                outstanding = [line for (line,) in connection.execute(OUTSTANDING, params)]
                outstanding += sorted(f"process: {p.role}" for p in self.processes.running.values() if p.role in JOBS)
                if not outstanding:
                    outcome.log.append(f"  level after {time.monotonic() - began:.1f} s")
                    return True
                batches = connection.execute("SELECT max(id) FROM sophia.batches").fetchone()
                if (outstanding, batches) != last:
                    last, moved = (outstanding, batches), time.monotonic()
                self.processes.wait(0.1)
        self._lose(outcome, "unlevel", f"nothing moves for {STUCK_SECONDS:g} s: " + "; ".join(outstanding[:10]))
        return False

    def _deep_repair(self, outcome: Outcome) -> None:
        """As `sophia repair` of each version that lives."""
        began = time.monotonic()
        with self.server.connect() as connection:
            versions = [(v.index_name, v.model.name) for v in active_versions(connection)]
        for index, model in versions:
            for _ in range(50):
                finished = self.processes.finished["repair"]
                process = self.processes.start("repair", index=index, model=model, deep=True)
                self.processes.wait(60, lambda pid=process.pid: pid not in self.processes.running)  # type: ignore[misc]
                if self.processes.finished["repair"] > finished:
                    break
            else:
                raise AssertionError(f"the repair of {index} never succeeds")
        outcome.log.append(f"  deep repairs took {time.monotonic() - began:.1f} s")

    def _prove(self, connection: psycopg.Connection[Any], outcome: Outcome, exact: bool) -> None:
        """`sophia verify` must say what the oracle says."""
        for version in active_versions(connection):
            proof = verify(connection, version, PgvectorStore(), ChaosEmbedder(version.model.name))
            if not proof.holds:
                self._lose(outcome, "unproven", proof.sentence())
            elif not exact:
                outcome.log.append(f"  and yet: {proof.sentence()}")

    @staticmethod
    def _lose(outcome: Outcome, kind: str, line: str) -> None:
        outcome.losses[kind] += 1
        outcome.log.append(f"  {kind}: {line}")

    # ---- figures -----------------------------------------------------------------------------------------

    def _mended(self) -> dict[int, int]:
        """How many documents the continuous verification found wrong so far, by version."""
        with self.server.connect() as connection:
            return dict(connection.execute("SELECT version_id, found FROM sophia.scans").fetchall())

    def _embedded(self) -> int:
        file = Path(self.server.folder / "calls")
        return sum(map(int, file.read_text().split())) if file.exists() else 0

    def _counts(self) -> dict[str, Counter[str]]:
        return {
            "kills": Counter(self.processes.kills),
            "hits": self.processes.hits,
            "ends": Counter(self.processes.ends),
            "embedded": Counter({"texts": self._embedded()}),
        }
