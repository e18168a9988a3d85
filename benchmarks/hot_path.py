"""How long from a source commit until search returns the new content?

    python -m benchmarks.hot_path [--embedder hash|minilm] [--changes 300] [--rows 2000]
    python -m benchmarks.hot_path --beside-backfill [--backfill 20000]
    python -m benchmarks.hot_path --quick

Capture and indexer run as processes, pinned with PostgreSQL to one core; this process, on another core where there is
one, commits single-row changes. Durability is on, texts are short. With the hash embedder, an HTTP server on this core
whose vector is a function of the text's hash, the model's time is as good as excluded. Arms:

* at a rate: `--rate` changes a second, mixed, whose writer waits for nothing; a poller on the other core reads the keys
  that are due, by key, through the public view;
* one at a time: the public search function polls until it shows the change, then the next change is made;
* with `--beside-backfill` instead: one at a time while `--backfill` rows, inserted in one transaction, are indexed
  beside them; the first change waits behind that transaction in the source's log and is shown by itself.

Stages are medians of Sophia's own records: write-ahead log to inbox, waiting for the indexer, embedding, writing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from benchmarks import hash_endpoint
from benchmarks.harness import durability, save
from benchmarks.installation import INDEX, Installation, Kind, content, cpu_per, installation
from benchmarks.live import TITLE, Change, at_rate, lives, mixed, one_at_a_time, summary, table
from sophia.embedding import load_embedder

FIRST_NEW = 10_000_001
WARM_UP = 10
LIVE_BATCHES = """
SELECT count(*), COALESCE(avg(documents), 0)::float8, COALESCE(max(documents), 0) FROM sophia.batches
WHERE version_id = %s AND lane = 'live' AND documents > 0 AND id > %s
"""
Vector = Callable[[Change], Any]


def vectors(made: Installation) -> Vector:
    """The query vector that finds a change, computed before it is timed."""
    if made.endpoint is not None:
        return lambda change: hash_endpoint.vector(content(TITLE, change.body))
    index = made.catalog.index(INDEX)
    embedder = load_embedder(made.catalog.model(index.model), index.precision, made.settings)
    return lambda change: embedder.embed_query(change.body)


def live_arms(made: Installation, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The arms without anything beside them."""
    arms = []
    with made.database.connect("bench") as connection:
        made.wait_level(connection)
        vector_of = vectors(made)
        one_at_a_time(made, list(lives(WARM_UP, FIRST_NEW)), vector_of, lambda: False)
        if made.endpoint is not None:
            count = min(arguments.changes, arguments.rows // 2)
            changes = list(mixed(3 * count, FIRST_NEW + 100_000, 1, arguments.rows // 2 + 1))
            newest = connection.execute("SELECT COALESCE(max(id), 0) FROM sophia.batches").fetchone()
            before = made.cpu_seconds()
            aside = at_rate(made, changes, arguments.rate)
            batches = connection.execute(LIVE_BATCHES, [made.version(connection).id, newest and newest[0]]).fetchone()
            arms.append(
                {
                    "arm": f"{arguments.rate:.0f} changes/s, by view",
                    "poller_aside": aside,
                    "batches": dict(zip(("count", "mean", "max"), batches or (), strict=False)),
                    "cpu_ms_per_change": cpu_per(before, made.cpu_seconds(), len(changes)),
                    "milliseconds": summary(changes),
                }
            )
        count = arguments.changes if made.endpoint is None else max(1, arguments.changes // 2)
        changes = one_at_a_time(made, list(lives(count, FIRST_NEW + 200_000)), vector_of, lambda: False)
        arms.append(
            {
                "arm": "one at a time, by search",
                "milliseconds": summary(changes),
            }
        )
    return arms


def backfill_arm(made: Installation, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One at a time while a bulk insert is indexed."""
    with made.database.connect("bench") as connection:
        made.wait_level(connection)
        vector_of = vectors(made)
        one_at_a_time(made, list(lives(WARM_UP, FIRST_NEW)), vector_of, lambda: False)
        made.add_rows(connection, arguments.rows + 1, arguments.rows + arguments.backfill)
        behind = one_at_a_time(made, list(lives(1, FIRST_NEW + 100_000))[:1], vector_of, lambda: False)
        changes = one_at_a_time(
            made,
            list(lives(arguments.changes, FIRST_NEW + 200_000)),
            vector_of,
            lambda: made.compared(connection),
        )
        left = (
            "measured until the backfill ended" if made.compared(connection) else "the backfill outlasted the changes"
        )
        return [
            {
                "arm": f"beside {arguments.backfill} rows, one at a time, by search",
                "behind_the_transaction_ms": behind[0].milliseconds,
                "until": left,
                "milliseconds": summary(changes),
            }
        ]


def measure(kind: Kind, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All arms of one embedder."""
    with installation(kind, arguments.rows) as made:
        endpoint = {"own": made.endpoint.own_ms(), "round_trip": made.endpoint.round_trip_ms()} if made.endpoint else {}
        with made.database.connect() as connection:
            durable = durability(connection)
        made.start("capture", "indexer")
        arms = backfill_arm(made, arguments) if arguments.beside_backfill else live_arms(made, arguments)
    return [{"embedder": kind, **arm, "durability": durable, "endpoint_ms": endpoint} for arm in arms]


def tell(arm: dict[str, Any]) -> None:
    """Print an arm."""
    name = f"{arm['embedder']}, {arm['arm']}"
    if arm["endpoint_ms"]:
        own, trip = arm["endpoint_ms"]["own"], arm["endpoint_ms"]["round_trip"]
        print(f"the hash endpoint's own time for one text: {own:.2f} ms, {trip:.2f} ms with client and HTTP")
    if "behind_the_transaction_ms" in arm:
        behind = arm["behind_the_transaction_ms"]
        print(f"{name}: a change right behind the bulk transaction: {behind:.0f} ms; {arm['until']}")
    if "cpu_ms_per_change" in arm:
        costs = ", ".join(f"{process} {cost:.2f}" for process, cost in arm["cpu_ms_per_change"].items())
        batches = arm["batches"]
        print(
            f"{name}: processor ms a change: {costs}; {batches['count']} batches, {batches['mean']:.1f} documents on "
            f"average, {batches['max']} at most"
        )
    table(f"{name}: commit → searchable, ms (stages: medians)", arm["milliseconds"])


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedder", choices=("hash", "minilm"), action="append", help="both if not given")
    parser.add_argument("--changes", type=int, default=300, help="rows to insert, update and delete each")
    parser.add_argument("--rows", type=int, default=2_000, help="documents in the index beforehand")
    parser.add_argument("--rate", type=float, default=100.0, help="changes a second of the arm at a rate")
    parser.add_argument("--beside-backfill", action="store_true", help="only the arm beside a backfill")
    parser.add_argument("--backfill", type=int, default=20_000, help="rows of that backfill")
    parser.add_argument("--quick", action="store_true", help="hash embedder, 200 rows, 10 changes of each kind")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.embedder, arguments.rows, arguments.changes, arguments.backfill = ["hash"], 200, 10, 1_500
    arms = []
    for kind in arguments.embedder or ("hash", "minilm"):
        for arm in measure(kind, arguments):
            tell(arm)
            arms.append(arm)
    print(f"{arguments.rows} documents beforehand; Sophia and PostgreSQL on one core; {arms[0]['durability']}")
    name = "hot_path_beside_backfill" if arguments.beside_backfill else "hot_path"
    save(name, {"rows": arguments.rows, "rate": arguments.rate, "arms": arms}, quick=arguments.quick)


if __name__ == "__main__":
    main()
