"""What does an index cost as it grows?

    python -m benchmarks.growth [--rows 10000 100000] [--full]
    python -m benchmarks.growth --quick

For each number of rows (a million with `--full`), loaded with the hash embedder: the lag of live changes at a rate,
from commit to the public view; then, with the indexer at rest, the continuous verification's tick when nothing changed,
one slice of its deep scan, the whole of `verify` as `sophia verify` runs it, and a repair of ten rows that were edited
or deleted in the store behind Sophia's back. The tick must not grow with the rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import sql as composed

from benchmarks.harness import durability, quantiles, save, show
from benchmarks.installation import INDEX, Installation, installation
from benchmarks.live import at_rate, mixed
from sophia.embedding import load_embedder
from sophia.indexing.leases import Lease
from sophia.indexing.repair import Session, repair_version
from sophia.indexing.scan import Scanner
from sophia.indexing.verify import verify
from sophia.stores import IN_DATABASE

Connection = psycopg.Connection[Any]
FIRST_NEW = 100_000_001
DRIFTED = 10
TICKS = 100
SLICES = 20
SECOND = 1e3  # milliseconds


class Ticking:
    """A clock that moves by what it is told, so that every step of the scanner is due."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def steps(connection: Connection, session: Session, batch: int) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds of a tick that finds nothing changed, and of a slice of the deep scan."""
    name = f"benchmark/{session.version.id}"
    lease = Lease.try_take(connection, name, 600.0)
    assert lease is not None
    clock = Ticking()
    ticking = Scanner(session.writer, 0, batch=batch, clock=clock)
    while ticking.step(connection, lease) is not None:  # what the live lane applied a moment ago is compared first
        clock.now += 2
    ticks = [_timed(clock, lambda: ticking.step(connection, lease)) for _ in range(TICKS)]
    scanning = Scanner(session.writer, 1, batch=batch, clock=clock)
    slices = [_timed(clock, lambda: scanning.step(connection, lease)) for _ in range(SLICES + 5)]
    lease.release(connection)
    # The first slices look for their width.
    return quantiles(ticks), quantiles(slices[5:])


def _timed(clock: Ticking, step: Callable[[], object]) -> float:
    clock.now += 3600
    started = time.perf_counter()
    step()
    return (time.perf_counter() - started) * SECOND


def drift(connection: Connection, session: Session) -> None:
    """Edit five rows of the store and delete five, behind Sophia's back."""
    table = composed.Identifier("indexes", session.version.store_name)
    keys = [row[0] for row in connection.execute(f"SELECT key FROM indexes.{INDEX} ORDER BY md5(key) LIMIT {DRIFTED}")]
    half = DRIFTED // 2
    connection.execute(
        composed.SQL("UPDATE {} SET content = content || ' (edited)' WHERE key = ANY(%s)").format(table), [keys[:half]]
    )
    connection.execute(composed.SQL("DELETE FROM {} WHERE key = ANY(%s)").format(table), [keys[half:]])


def measure(rows: int, rate: float, changes: int) -> dict[str, Any]:
    """One size."""
    with installation("hash", rows) as made, made.database.connect("bench") as connection:
        made.start("capture", "indexer")
        load_seconds = made.wait_level(connection, 7200)
        count = min(changes, rows // 2)
        paced = list(mixed(count, FIRST_NEW, 1, rows // 2 + 1))
        at_rate(made, paced, rate)
        lag = quantiles([change.milliseconds for change in paced])
        made.stop("indexer")
        made.pin(first=True)
        found = at_rest(made, connection)
        made.pin(first=False)
        return {
            "rows": rows,
            "load_seconds": load_seconds,
            "lag_ms": lag,
            "durability": durability(connection),
            **found,
        }


def at_rest(made: Installation, connection: Connection) -> dict[str, Any]:
    """What verification and repair cost while nothing changes."""
    index = made.catalog.index(INDEX)
    embedder = load_embedder(made.catalog.model(index.model), index.precision, made.settings)
    session = Session.open(connection, made.catalog, index, "local", lambda _: embedder, made.settings, run="benchmark")
    batch = made.settings.indexer.bulk_documents
    ticks, slices = steps(connection, session, batch)
    store = IN_DATABASE.of(session.version)
    started = time.perf_counter()
    proof = verify(connection, session.version, store, embedder)
    verify_seconds = time.perf_counter() - started
    drift(connection, session)
    assert made.endpoint is not None
    made.endpoint.reset()
    started = time.perf_counter()
    repair_version(connection, session, range(index.shards), batch=batch, deep=True)
    repair_seconds = time.perf_counter() - started
    paid = made.endpoint.counts()["texts"]
    after = verify(connection, session.version, store, None)
    return {
        "tick_ms": ticks,
        "slice_ms": slices,
        "verify_seconds": verify_seconds,
        "verified": proof.sentence(),
        "repair_seconds": repair_seconds,
        "repair_embedded": paid,
        "holds": proof.holds and after.holds,
    }


def main() -> None:
    """Measure, print, save; exit code 1 if a verification did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--full", action="store_true", help="a million rows, too")
    parser.add_argument("--rate", type=float, default=50.0, help="live changes a second")
    parser.add_argument("--changes", type=int, default=200, help="rows to insert, update and delete each")
    parser.add_argument("--quick", action="store_true", help="500 rows, 10 changes of each kind")
    arguments = parser.parse_args()
    sizes = [*arguments.rows, *([1_000_000] if arguments.full else [])]
    if arguments.quick:
        sizes, arguments.changes = [500], 10
    results = []
    for rows in sizes:
        results.append(measure(rows, arguments.rate, arguments.changes))
        print(f"{rows} rows: {results[-1]['verified']}", flush=True)
    print(f"Sophia and PostgreSQL on one core; {arguments.rate:.0f} live changes/s; {results[0]['durability']}")
    show(
        f"growth; repair is of {DRIFTED} drifted rows, the index read whole",
        ["rows", "load s", "lag p50 ms", "p95", "tick ms", "slice ms", "verify s", "repair s", "embedded", "holds"],
        [
            (
                f"{r['rows']:,}",
                r["load_seconds"],
                r["lag_ms"]["p50"],
                r["lag_ms"]["p95"],
                f"{r['tick_ms']['p50']:.2f}",
                r["slice_ms"]["p50"],
                f"{r['verify_seconds']:.2f}",
                f"{r['repair_seconds']:.2f}",
                int(r["repair_embedded"]),
                "yes" if r["holds"] else "NO",
            )
            for r in results
        ],
    )
    save("growth", {"rate": arguments.rate, "sizes": results}, quick=arguments.quick)
    if not all(r["holds"] for r in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
