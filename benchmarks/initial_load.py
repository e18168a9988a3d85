"""What does the pipeline add to pure embedding of the same texts?

    python -m benchmarks.initial_load [--rows 1000]

Three arms on the same texts, one after the other, twice, on one core: the embedder alone before and after, and the
whole initial load between them (snapshot, inbox, chunks, embedding, store, nearest-neighbour index).
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import save, show
from sophia import sample
from sophia.capture import Capture, postgres_sources
from sophia.catalog import Catalog, default_path, load
from sophia.database import open_database
from sophia.embedding import Embedder, load_embedder
from sophia.indexing.repair import Session, repair_version
from sophia.settings import load_settings

INDEX = "documents"


def pipeline(catalog: Catalog, embedder: Embedder, rows: int) -> tuple[dict[str, float], list[str]]:
    """Seconds by stage of a whole initial load into a fresh database, and the texts that were embedded."""
    home = Path(tempfile.mkdtemp(prefix="sophia-bench-"))
    settings = load_settings(home=home)
    database = open_database(settings)
    seconds: dict[str, float] = {}
    try:
        with database.connect() as connection:
            sample.load(connection, limit=rows)
            source = postgres_sources(catalog, settings, database)[0]
            capture = Capture(source, database, settings.capture)
            stop = threading.Event()
            thread = threading.Thread(target=capture.run, args=(stop,))
            started = time.perf_counter()
            thread.start()
            capture.ready.wait(120)
            seconds["capture"] = time.perf_counter() - started
            started = time.perf_counter()
            session = Session.open(
                connection, catalog, catalog.index(INDEX), "local", lambda _: embedder, settings, run="benchmark"
            )
            figures = repair_version(
                connection,
                session,
                range(session.version.index.shards),
                batch=settings.indexer.bulk_documents,
                deep=False,
            )
            seconds["index"] = time.perf_counter() - started
            seconds["of it embedding"] = figures.embed_seconds
            texts = [row[0] for row in connection.execute("SELECT content FROM indexes.documents ORDER BY key, chunk")]
            stop.set()
            thread.join()
    finally:
        database.release()
        shutil.rmtree(home, ignore_errors=True)
    return seconds, texts


def pure(embedder: Embedder, texts: list[str], batch: int) -> float:
    """Seconds for the embedder alone, in batches of the pipeline's size."""
    started = time.perf_counter()
    for start in range(0, len(texts), batch):
        embedder.embed(texts[start : start + batch])
    return time.perf_counter() - started


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    settings = load_settings()
    catalog = load(settings.catalog or default_path())
    index = catalog.index(INDEX)
    embedder = load_embedder(catalog.model(index.model), index.precision, settings)
    import torch

    torch.set_num_threads(1)
    embedder.embed(["warm up"] * 16)
    rounds: list[dict[str, Any]] = []
    for _ in range(2):
        seconds, texts = pipeline(catalog, embedder, arguments.rows)
        unique = list(dict.fromkeys(texts))
        alone = pure(embedder, unique, settings.indexer.bulk_documents)
        whole = seconds["capture"] + seconds["index"]
        rounds.append(
            {**seconds, "whole": whole, "embedding alone": alone, "texts": len(unique), "overhead": whole / alone - 1}
        )
    show(
        f"initial load of {arguments.rows} rows, one core, seconds",
        ["round", "texts", "capture", "index", "of it embedding", "whole", "embedding alone", "overhead %"],
        [
            (
                number + 1,
                r["texts"],
                *(float(r[name]) for name in ("capture", "index", "of it embedding", "whole", "embedding alone")),
                r["overhead"] * 100,
            )
            for number, r in enumerate(rounds)
        ],
    )
    save("initial_load", {"rows": arguments.rows, "rounds": rounds})


if __name__ == "__main__":
    main()
