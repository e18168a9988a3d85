"""What do changes of an indexed table cost, and how soon is the index exact again?

    python -m benchmarks.changes [--rows 1500] [--rounds 3]
    python -m benchmarks.changes --quick

Three changes, each until an oracle that shares no code with Sophia finds the index exact (keys, texts, metadata, and
vectors by the hash of the text): one per cent of the rows updated, one deleted and one inserted in one transaction; one
row updated fifty times, each in a transaction of its own; fifteen rows touched in a column that is not embedded. What
was embedded is what the hash endpoint was asked: it must be the changed texts, at most four of the fifty, and nothing.
The oracle's queries run on the other core.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import psycopg

from benchmarks.harness import durability, save, show
from benchmarks.installation import Installation, installation
from benchmarks.oracle import differences, looks_exact

Connection = psycopg.Connection[Any]
BURST = 50
MOST_OF_A_BURST = 4
TOUCHED = 15
HOT = 1
PAUSE = 0.002


class Case:
    """A change of the table, timed until the index is exact."""

    def __init__(self, made: Installation, writer: Connection, watcher: Connection) -> None:
        self._made = made
        self._writer = writer
        self._watcher = watcher
        assert made.endpoint is not None
        self._endpoint = made.endpoint
        row = watcher.execute("SELECT max(id) FROM public.documents").fetchone()
        self._spare = int(row[0]) if row else 0

    def per_cent(self, rows: int, number: int) -> dict[str, Any]:
        """1 % updated, 1 % deleted, 1 % inserted, in one transaction."""
        size = max(1, rows // 100)
        first = 1 + TOUCHED + number * 3 * size
        self._begin()
        with self._writer.transaction():
            self._writer.execute(
                "UPDATE public.documents SET body = body || ' again ' || %s::text WHERE id >= %s AND id < %s",
                [number, first, first + size],
            )
            self._writer.execute(
                "DELETE FROM public.documents WHERE id >= %s AND id < %s", [first + size, first + 2 * size]
            )
            self._made.add_rows(self._writer, rows * 10 + number * size, rows * 10 + (number + 1) * size - 1)
        return self._end("1 % updated, deleted, inserted", 2 * size, 2 * size)

    def burst(self, number: int) -> dict[str, Any]:
        """One row, fifty times, as fast as transactions commit."""
        self._begin()
        for turn in range(BURST):
            self._writer.execute(
                "UPDATE public.documents SET body = %s WHERE id = %s", [f"turn {turn} of burst {number}", HOT]
            )
        return self._end(f"one row {BURST} times", 1, MOST_OF_A_BURST)

    def touched(self) -> dict[str, Any]:
        """Rows whose only change is in a column that neither text nor metadata has."""
        self._begin()
        self._writer.execute("UPDATE public.documents SET views = views + 1 WHERE id <= %s", [TOUCHED])
        return self._end(f"{TOUCHED} rows, column not embedded", 0, 0)

    def _begin(self) -> None:
        self._endpoint.reset()
        self._began = time.perf_counter()

    def _end(self, what: str, least: int, most: int) -> dict[str, Any]:
        started = time.perf_counter()
        self._made.wait(lambda: looks_exact(self._watcher), what, 60, PAUSE)
        seconds = time.perf_counter() - started
        # Exact texts are no proof yet that nothing is on its way: a touched row changes no text. What is deleted
        # after it is applied after it, and embeds nothing.
        self._writer.execute("DELETE FROM public.documents WHERE id = %s", [self._spare])
        self._spare -= 1
        self._made.wait(lambda: looks_exact(self._watcher), "the row deleted last", 60, PAUSE)
        if most == 0:
            seconds = time.perf_counter() - started
        wrong = differences(self._watcher)
        counts = self._endpoint.counts()
        return {
            "case": what,
            "seconds_of_the_change": started - self._began,
            "seconds_until_exact": seconds,
            "embedded": int(counts["texts"]),
            "calls": int(counts["calls"]),
            "least": least,
            "most": most,
            "wrong": wrong,
            "good": not any(wrong.values()) and least <= counts["texts"] <= most,
        }


def main() -> None:
    """Measure, print, save; exit code 1 if an index was not exact or texts were embedded that had not changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="300 rows, one round")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.rounds = 300, 1
    results = []
    with installation("hash", arguments.rows) as made:
        assert made.endpoint is not None
        own = made.endpoint.own_ms()
        with made.database.connect("bench-writer") as writer, made.database.connect("bench-watcher") as watcher:
            durable = durability(watcher)
            made.start("capture", "indexer")
            made.wait_level(watcher)
            made.aside(watcher)
            case = Case(made, writer, watcher)
            for number in range(arguments.rounds):
                results += [case.per_cent(arguments.rows, number), case.burst(number), case.touched()]
    print(f"{arguments.rows} rows; the hash endpoint's own time for one text: {own:.2f} ms; {durable}")
    show(
        "changes",
        ["change", "exact after s", "took s", "embedded", "allowed", "calls", "right"],
        [
            (
                r["case"],
                f"{r['seconds_until_exact']:.3f}",
                f"{r['seconds_of_the_change']:.3f}",
                r["embedded"],
                r["most"] if r["least"] == r["most"] else f"{r['least']} to {r['most']}",
                r["calls"],
                "yes" if r["good"] else "NO",
            )
            for r in results
        ],
    )
    for r in results:
        if any(r["wrong"].values()):
            print(f"{r['case']}: wrong rows: {r['wrong']}")
    save("changes", {"rows": arguments.rows, "durability": durable, "cases": results}, quick=arguments.quick)
    # How many of a burst are embedded depends on the machine's speed; the others do not.
    if any(any(r["wrong"].values()) or (r["least"] == r["most"] != r["embedded"]) for r in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
