"""Sophia against other systems that keep a vector index in step with PostgreSQL.

    python -m benchmarks.peers --install     # once: makes a virtual environment for each peer
    python -m benchmarks.peers               # all arms, four to six minutes
    python -m benchmarks.peers --quick       # few rows, nothing written
    python -m benchmarks.peers --arms sophia cocoindex

Arms: Sophia (its own `capture` and `indexer` processes), cocoindex (its `App.update()` in a loop without pause, as its
PostgreSQL source has no notifications) and pgai's vectorizer (worker with a poll interval of one second, its smallest
that is no busy loop). A peer that cannot be installed or cannot run is left out, and the table says why.

Conditions, the same for all: an embedded PostgreSQL server of its own with the same settings, durability on (printed),
source and index in one database, an HNSW index on the vectors; server and workers pinned to one core, this client and
the embedder to another; one HTTP embedder whose vector is a function of the text's hash, so that it costs next to
nothing and every vector can be checked. For each measure the arms take turns, in an order that rotates; while one is
measured, the others' workers are stopped (SIGSTOP), except Sophia's, which wait for notifications. "Exact" is judged
by reading the index's table and comparing it with the source's rows: keys, texts and vectors. Telemetry is off.

The latency is from the commit until a reader of the index's table, looking every millisecond, sees the new text (or
no row). A change comes at a random moment of the arm's cycle, so that nobody is measured just after a poll.
"""
