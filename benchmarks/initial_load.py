"""How fast is a table loaded, and what does the pipeline add to pure embedding?

    python -m benchmarks.initial_load [--rows 100000] [--together]
    python -m benchmarks.initial_load --overhead [--overhead-rows 1000]
    python -m benchmarks.initial_load --quick

The load: rows are written to the source, then `sophia capture` takes its snapshot into the inbox, then `sophia indexer`
embeds with the hash endpoint and builds the nearest-neighbour index; one after the other, so that each has its own
rows a second, or with `--together` both at once. Sophia and PostgreSQL share one core. A process's start is not
counted: a stage begins with its first row. Resident memory is read twice a second.

The overhead: MiniLM alone on the texts, and the whole load of the same texts (snapshot, inbox, chunks, embedding,
store, index) beside it, in turns, on one core, by size of the bulk batch; in wall time and, for busy machines, in
processor time of all processes. The search for the best size of a pass comes before both.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from typing import Any

import psycopg

from benchmarks.harness import durability, save, show
from benchmarks.installation import INDEX, Installation, installation
from sophia.capture import Capture, postgres_sources
from sophia.embedding import Embedder, load_embedder
from sophia.indexing.repair import Session, repair_version

Connection = psycopg.Connection[Any]
SAMPLE_SECONDS = 0.5
PROCESSES = ("capture", "indexer")
DOCUMENTS = (
    "SELECT count(*) FROM sophia.documents d JOIN sophia.collections c ON c.id = d.collection_id WHERE c.name = %s"
)
BATCHES = """
SELECT count(*), COALESCE(avg(documents), 0)::float8, COALESCE(max(documents), 0),
       COALESCE(sum(embed_ms), 0)::float8 / 1000, COALESCE(sum(apply_ms), 0)::float8 / 1000
FROM sophia.batches WHERE version_id = %s AND documents > 0
"""


class Memory:
    """Resident memory of the started processes over time, in a thread."""

    def __init__(self, made: Installation) -> None:
        self._made = made
        self._stop = threading.Event()
        self.samples: dict[str, list[float]] = {name: [] for name in PROCESSES}
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            for name in list(self._made.children):
                self.samples[name].append(self._made.rss_mb(name))

    def end(self) -> dict[str, dict[str, float]]:
        """Megabytes at the start, in the middle, at the end and at most, by process."""
        self._stop.set()
        self._thread.join()
        return {
            name: {"start": found[0], "middle": found[len(found) // 2], "end": found[-1], "max": max(found)}
            for name, found in self.samples.items()
            if found
        }


def load(rows: int, *, together: bool) -> dict[str, Any]:
    """One initial load with the hash embedder: seconds by stage, memory, batches."""
    seconds: dict[str, float] = {}
    with installation("hash", 0) as made, made.database.connect("bench") as connection:
        made.aside(connection)
        assert made.endpoint is not None
        own = made.endpoint.own_ms()
        made.endpoint.reset()
        with made.database.connect("bench-source") as source:
            started = time.perf_counter()
            made.add_rows(source, 1, rows)
            seconds["source"] = time.perf_counter() - started
        print(f"source: {seconds['source']:.1f} s", flush=True)
        before = made.cpu_seconds()
        made.start(*(PROCESSES if together else PROCESSES[:1]))
        memory = Memory(made)

        def documents() -> int:
            row = connection.execute(DOCUMENTS, [INDEX]).fetchone()
            return int(row[0]) if row else 0

        made.wait(lambda: documents() > 0, "the first rows in the inbox", pause=0.02)
        begun = time.perf_counter()
        made.wait(lambda: made.captured(connection), "the snapshot")
        seconds["snapshot → inbox"] = time.perf_counter() - begun
        print(f"snapshot → inbox: {seconds['snapshot → inbox']:.1f} s", flush=True)
        if not together:
            made.start("indexer")
            made.wait(lambda: made.endpoint is not None and made.endpoint.counts()["calls"] > 0, "the first text")
            begun = time.perf_counter()
        made.wait(lambda: made.compared(connection), "the first comparison")
        stored = time.perf_counter() - begun
        seconds["all → store" if together else "inbox → store"] = stored
        print(f"to the store: {stored:.1f} s", flush=True)
        begun = time.perf_counter()
        made.wait(lambda: made.built(connection), "the nearest-neighbour index")
        seconds["index build"] = time.perf_counter() - begun
        after = made.cpu_seconds()
        batches = connection.execute(BATCHES, [made.version(connection).id]).fetchone()
        assert batches is not None
        chunks = connection.execute(f"SELECT count(*) FROM indexes.{INDEX}").fetchone()
        return {
            "rows": rows,
            "together": together,
            "seconds": seconds,
            "indexed": int(chunks[0]) if chunks else 0,
            "memory_mb": memory.end(),
            "cpu_seconds": {name: after[name] - before.get(name, 0.0) for name in after},
            "batches": dict(zip(("count", "mean", "max", "embed_s", "apply_s"), batches, strict=True)),
            "endpoint": made.endpoint.counts(),
            "endpoint_own_ms": own,
            "durability": durability(connection),
        }


def show_load(found: dict[str, Any]) -> None:
    """Print a load."""
    rows, seconds = found["rows"], found["seconds"]
    counted = {name: value for name, value in seconds.items() if not (found["together"] and name == "snapshot → inbox")}
    lines = [(stage, value, f"{rows / max(value, 1e-9):,.0f}") for stage, value in seconds.items()]
    unbuilt = sum(value for stage, value in counted.items() if stage not in {"source", "index build"})
    pipeline = unbuilt + seconds["index build"]
    lines += [
        ("source to store", unbuilt, f"{rows / unbuilt:,.0f}"),
        ("index build included", pipeline, f"{rows / pipeline:,.0f}"),
    ]
    print(f"{rows} rows, {found['indexed']} in the index; {found['durability']}")
    show(f"initial load{', both at once' if found['together'] else ''}", ["stage", "s", "rows/s"], lines)
    show(
        "resident memory, MB; processor time, s",
        ["process", "start", "middle", "end", "max", "CPU s"],
        [
            (name, *(values[at] for at in ("start", "middle", "end", "max")), found["cpu_seconds"][name])
            for name, values in found["memory_mb"].items()
        ]
        + [("postgres", "", "", "", "", found["cpu_seconds"]["postgres"])],
    )
    batches, endpoint = found["batches"], found["endpoint"]
    print(
        f"{batches['count']} batches, {batches['mean']:.0f} documents on average, {batches['max']} at most; of "
        f"{batches['apply_s']:.1f} s in them {batches['embed_s']:.1f} s embedding; {endpoint['calls']:.0f} calls for "
        f"{endpoint['texts']:.0f} texts, the endpoint's own time {endpoint['busy_ms'] / 1000:.1f} s, "
        f"{found['endpoint_own_ms']:.2f} ms for one text"
    )


def overhead_round(rows: int, batch: int) -> dict[str, Any]:
    """Pure embedding and the whole pipeline on the same texts, in wall and processor seconds."""
    with installation("minilm", rows) as made, made.database.connect("bench") as connection:
        made.pin(first=True)
        index = made.catalog.index(INDEX)
        embedder = load_embedder(made.catalog.model(index.model), index.precision, made.settings)
        import torch

        torch.set_num_threads(1)
        embedder.embed(["warm up"] * 16)
        warming = time.perf_counter()
        if embedder.engine is not None:
            # Once a process, at the first large batch: in neither arm, or it would be in one of them only.
            embedder.engine.warm_up()
        warming = time.perf_counter() - warming
        capture = Capture(
            postgres_sources(made.catalog, made.settings, made.database)[0], made.database, made.settings.capture
        )
        stop = threading.Event()
        thread = threading.Thread(target=capture.run, args=(stop,))
        started, spent = time.perf_counter(), _processor(made)
        thread.start()
        capture.ready.wait(300)
        captured = time.perf_counter() - started
        session = Session.open(
            connection, made.catalog, index, "local", lambda _: embedder, made.settings, run="benchmark"
        )
        shards = range(session.version.index.shards)
        figures = repair_version(connection, session, shards, batch=batch, deep=False)
        whole, whole_cpu = time.perf_counter() - started, _processor(made) - spent
        stop.set()
        thread.join()
        texts = [row[0] for row in connection.execute(f"SELECT content FROM indexes.{INDEX} ORDER BY key, chunk")]
        alone, alone_cpu = pure(embedder, list(dict.fromkeys(texts)), batch)
    return {
        "batch": batch,
        "texts": len(texts),
        "warm-up": warming,
        "capture": captured,
        "of it embedding": figures.embed_seconds,
        "whole": whole,
        "alone": alone,
        "whole_cpu": whole_cpu,
        "alone_cpu": alone_cpu,
        "overhead": whole / alone - 1,
        "overhead_cpu": whole_cpu / alone_cpu - 1,
    }


def pure(embedder: Embedder, texts: list[str], batch: int) -> tuple[float, float]:
    """Wall and processor seconds for the embedder alone, in batches of the pipeline's size."""
    started, spent = time.perf_counter(), time.process_time()
    for start in range(0, len(texts), batch):
        embedder.embed(texts[start : start + batch])
    return time.perf_counter() - started, time.process_time() - spent


def _processor(made: Installation) -> float:
    """Processor seconds so far of this process and of PostgreSQL."""
    return time.process_time() + made.cpu_seconds().get("postgres", 0.0)


def show_overhead(rounds: list[dict[str, Any]]) -> None:
    """Print the overhead."""
    show(
        "pipeline over pure embedding with MiniLM, one core, seconds",
        [
            "batch",
            "texts",
            "warm-up",
            "capture",
            "embedding in it",
            "whole",
            "alone",
            "%",
            "CPU whole",
            "CPU alone",
            "CPU %",
        ],
        [
            (
                r["batch"],
                r["texts"],
                *(r[name] for name in ("warm-up", "capture", "of it embedding", "whole", "alone")),
                r["overhead"] * 100,
                *(r[name] for name in ("whole_cpu", "alone_cpu")),
                r["overhead_cpu"] * 100,
            )
            for r in rounds
        ],
    )


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--together", action="store_true", help="start capture and indexer at once")
    parser.add_argument("--overhead", action="store_true", help="measure only the overhead over pure embedding")
    parser.add_argument("--overhead-rows", type=int, default=1_000)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024], help="bulk batches of the overhead")
    parser.add_argument("--quick", action="store_true", help="a load of 2,000 rows, no overhead")
    arguments = parser.parse_args()
    if arguments.overhead:
        cores = os.sched_getaffinity(0)
        rounds = []
        for batch in arguments.batches:
            rounds.append(overhead_round(arguments.overhead_rows, batch))
            os.sched_setaffinity(0, cores)
        show_overhead(rounds)
        save("overhead", {"rows": arguments.overhead_rows, "rounds": rounds}, quick=arguments.quick)
        return
    found = load(2_000 if arguments.quick else arguments.rows, together=arguments.together)
    show_load(found)
    name = "initial_load_together" if arguments.together else "initial_load"
    save(name, found, quick=arguments.quick)


if __name__ == "__main__":
    main()
