"""The gates: what must be true of a version before it may serve.

Each gate is one question with its figures. They run while changes come in: what was there when a gate began is asked
about, and the live lane gets a moment to take it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.embedding import Embedder, RefusedTextsError, model_fingerprint
from sophia.indexing.search import search_version
from sophia.indexing.verify import verify
from sophia.indexing.versions import IndexVersion
from sophia.stores import IN_DATABASE, Query, Store, Stores

Connection = psycopg.Connection[TupleRow]
EmbedderOf = Callable[[IndexVersion], Embedder]
Q = sql.load("gates")
Name = Literal["complete", "proven", "recall", "sample_queries"]
NAMES: tuple[Name, ...] = ("complete", "proven", "recall", "sample_queries")
# Of the true ten nearest, the share that the nearest-neighbour index must find.
RECALL = 0.95
# Of the sampled documents, the share that their own text must find.
FOUND = 0.95
NEAREST = 10
SAMPLE = 100
# Length of the random step from a stored unit vector to a query: a query is near a text, and not on it.
STEP = 0.1
# Chunks above which a version without a nearest-neighbour index may not serve: every search would read them all.
EXACT_CHUNKS = 50_000
# How long a gate waits for what is on its way.
PATIENCE_SECONDS = 10.0
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Gate:
    """The outcome of one gate."""

    name: Name
    passed: bool
    sentence: str
    figures: dict[str, float] = field(default_factory=dict)


def run_gates(
    connection: Connection,
    version: IndexVersion,
    store: Store,
    embedder_of: EmbedderOf,
    *,
    serving: IndexVersion | None = None,
    seed: str = "",
    names: tuple[Name, ...] = NAMES,
    patience: float = PATIENCE_SECONDS,
    stores: Stores = IN_DATABASE,
) -> Iterator[Gate]:
    """The gates of a version, one after another.

    Args:
        serving: the version that serves now, to compare results with.
        seed: decides the samples.
        patience: seconds to wait for changes that are on their way.
        stores: where versions live, for searches as people make them.
    """
    if "complete" in names:
        yield complete(connection, version, patience)
    if "proven" in names:
        yield proven(connection, version, store, embedder_of(version), seed, patience)
    if "recall" in names:
        yield recall(connection, version, store, seed)
    if "sample_queries" in names:
        yield sample_queries(connection, version, store, embedder_of, serving, seed, stores)


def complete(connection: Connection, version: IndexVersion, patience: float) -> Gate:
    """Every shard was compared, and every document is in the ledger as it is now, or parked."""
    params = {"collection_id": version.collection_id, "version_id": version.id}
    row = connection.execute(Q["position"], params).fetchone()
    params["position"] = int(row[0]) if row else 0
    deadline = time.monotonic() + patience
    while True:
        found = connection.execute(Q["coverage"], params).fetchone() or (0, 0, 0, 0, 0)
        documents, parked, waiting, behind, shards = map(int, found)
        passed = waiting == 0 and behind == 0
        if passed or time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
    sentence = (
        f"{version.label} has {documents - waiting} of {documents} documents ({parked} parked) up to position "
        f"{params['position']}; {shards - behind} of {shards} shards are compared"
    )
    if not passed:
        sentence += "; materialise the index, run `sophia repair`, or let the indexer catch up"
    figures = {"documents": documents, "parked": parked, "waiting": waiting, "shards_behind": behind}
    return Gate("complete", passed, sentence, {name: float(value) for name, value in figures.items()})


def proven(
    connection: Connection, version: IndexVersion, store: Store, embedder: Embedder, seed: str, patience: float
) -> Gate:
    """The store equals the documents; what is only on its way gets a moment."""
    deadline = time.monotonic() + patience
    while True:
        proof = verify(connection, version, store, embedder, seed=seed)
        found = proof.difference
        settled = found.extra or found.doubled or found.altered or not (found.stale or found.missing)
        if proof.holds or settled or time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
    figures = {name: float(count) for name, count in found.counts().items()}
    figures |= {"documents": float(proof.documents), "chunks": float(proof.chunks)}
    if proof.cosine_min is not None:
        figures["cosine_min"] = proof.cosine_min
    return Gate("proven", proof.holds, proof.sentence(), figures)


def recall(connection: Connection, version: IndexVersion, store: Store, seed: str) -> Gate:
    """The nearest-neighbour index finds what an exact search finds."""
    _, chunks = store.counts(connection, version)
    if not store.approximate(connection, version):
        passed = chunks <= EXACT_CHUNKS
        sentence = f"{version.label} has no nearest-neighbour index: its searches read all {chunks} chunks, exactly"
        if not passed:
            sentence += f", which is too slow above {EXACT_CHUNKS}; materialise the index, which builds it"
        return Gate("recall", passed, sentence, {"chunks": float(chunks), "recall": 1.0, "queries": 0.0})
    sample = store.sample(connection, version, SAMPLE, f"recall {seed}")
    random = np.random.default_rng(len(sample))
    shares: list[float] = []
    for chunk in sample:
        step = random.standard_normal(len(chunk.vector)).astype(np.float32)
        vector = chunk.vector + STEP * step / np.linalg.norm(step)
        vector /= np.linalg.norm(vector)
        exact = store.search(connection, version, Query(vector=vector, text="", k=NEAREST, exact=True))
        found = store.search(connection, version, Query(vector=vector, text="", k=NEAREST))
        if exact:
            # By distance and not by id: equal texts are equally near, and any of them is right.
            near = sum(hit.score >= exact[-1].score - 1e-6 for hit in found)
            shares.append(min(near, len(exact)) / len(exact))
    share = float(np.mean(shares)) if shares else 1.0
    return Gate(
        "recall",
        share >= RECALL,
        f"{version.label}: recall@{NEAREST} of the nearest-neighbour index is {share:.3f} over {len(shares)} queries, "
        f"at least {RECALL} is wanted",
        {"recall": share, "queries": float(len(shares)), "chunks": float(chunks)},
    )


def sample_queries(
    connection: Connection,
    version: IndexVersion,
    store: Store,
    embedder_of: EmbedderOf,
    serving: IndexVersion | None,
    seed: str,
    stores: Stores = IN_DATABASE,
) -> Gate:
    """A document's own text finds it, by the way that every search takes."""
    required = version.index.required_filter
    comparable = serving is not None and serving.id != version.id and _same_model(version, serving)
    found = asked = 0
    overlaps: list[float] = []
    for chunk in store.sample(connection, version, SAMPLE, f"queries {seed}"):
        filters = {required: chunk.metadata.get(required)} if required is not None else {}
        asked += 1
        try:
            hits = search_version(
                connection, version, chunk.content, embedder_of, k=NEAREST, filters=filters, stores=stores
            )
        except RefusedTextsError:
            # A person who asks for it does not find it either.
            continue
        # Another document with the very same text is as good an answer.
        found += any(hit.key == chunk.key or hit.content == chunk.content for hit in hits)
        if comparable and serving is not None and (required is None or required in serving.index.metadata):
            # The same model, which did not refuse the text.
            before = search_version(
                connection, serving, chunk.content, embedder_of, k=NEAREST, filters=filters, stores=stores
            )
            keys, others = {hit.key for hit in hits}, {hit.key for hit in before}
            overlaps.append(len(keys & others) / max(1, len(keys | others)))
    share = found / asked if asked else 1.0
    figures = {"found": share, "queries": float(asked)}
    sentence = (
        f"{version.label}: {found} of {asked} sampled documents are among the first {NEAREST} results of their own text"
    )
    if overlaps and serving is not None:
        figures["overlap"] = float(np.mean(overlaps))
        sentence += f"; {figures['overlap']:.0%} of the results are those of v{serving.number}"
    return Gate("sample_queries", share >= FOUND, sentence, figures)


def _same_model(version: IndexVersion, other: IndexVersion) -> bool:
    def mark(each: IndexVersion) -> str:
        return model_fingerprint(each.model, each.index.precision)

    return mark(version) == mark(other)
