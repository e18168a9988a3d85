"""How fast is Weaviate through Sophia's store: bulk writes against the client's own batches, and search.

    SOPHIA_TEST_WEAVIATE_URL=http://127.0.0.1:8080 python -m benchmarks.weaviate [--objects 100000] [--queries 1000]
    SOPHIA_TEST_WEAVIATE_URL=http://127.0.0.1:8080 python -m benchmarks.weaviate --quick

`docker compose -f deploy/compose/weaviate.yaml up` starts a server; SOPHIA_TEST_WEAVIATE_GRPC is its gRPC address.

Bulk: three arms write the same objects (text, properties, vector of 384 dimensions, id) into classes of the same
definition, block by block in turn, each block by another arm first. `store` is `WeaviateStore.write` with the batch of
the indexer's bulk lane, given documents; `batch` is the client's own batch, `insert_many` its call for a list, both
given objects that were prepared before the clock started, and the store's number of objects and requests at a time.
The figure is the median rate of the blocks, and the store's rate as a part of the faster one of the client's two.

Search: then one class is filled up to `--objects` and nothing else is done. Queries are new members of the clusters
that the vectors are in; the truth comes from numpy over all vectors.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from benchmarks.harness import quantiles, save, show
from sophia.catalog import default_path, load
from sophia.catalog.models import Index
from sophia.documents import Clock, Origin, bucket_of, canonical_key
from sophia.indexing.text import content_hash
from sophia.indexing.versions import IndexVersion
from sophia.settings import Settings, load_settings
from sophia.stores.base import ChunkWrite, DocumentWrite, Query, vector_hash
from sophia.stores.weaviate import WeaviateStore
from sophia.stores.weaviate_objects import Layout
from sophia.stores.weaviate_schema import class_name

DIMENSION = 384
CLUSTER = 100  # objects of a cluster
SPREAD = 0.8  # length of a member's noise beside its centre's length of 1
WORDS = 80  # of a text
K = 10
MODULES = 100
FILTERS: dict[str, dict[str, str]] = {"none": {}, "1 % by module": {"module": "m37"}}
ARMS = ("store", "batch", "insert_many")
# The store uses the database only for a class with tenants, which this one is not.
NOTHING: Any = None
Floats = npt.NDArray[np.float32]


class Data:
    """Documents of one chunk, the same for the same seed. Vectors are unit vectors in clusters."""

    def __init__(self, objects: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._seed = seed
        self._centres = _unit(rng.standard_normal((max(1, objects // CLUSTER), DIMENSION), dtype=np.float32))
        self.vectors = self._members(np.arange(objects) % len(self._centres), 1)

    def queries(self, count: int) -> Floats:
        """Shape (count, 384): new members of the clusters."""
        rng = np.random.default_rng([self._seed, 2])
        return self._members(rng.integers(0, len(self._centres), count), 3)

    def _members(self, clusters: npt.NDArray[Any], stream: int) -> Floats:
        rng = np.random.default_rng([self._seed, stream])
        noise = _unit(rng.standard_normal((len(clusters), DIMENSION), dtype=np.float32))
        return _unit(self._centres[clusters] + SPREAD * noise)

    def documents(self, version: IndexVersion, first: int, last: int) -> list[DocumentWrite]:
        """Documents `first` to `last` - 1, for a version of which the ids are."""
        rng = np.random.default_rng([self._seed, 4, first])
        documents = []
        for number in range(first, last):
            text = " ".join(f"word{n}" for n in rng.integers(0, 5_000, WORDS))
            key = canonical_key([number])
            vector = self.vectors[number]
            chunk = ChunkWrite(
                version.chunk_id(key, 0), 0, 0, len(text), text, content_hash(text), vector_hash(vector), vector
            )
            metadata = {"module": f"m{number % MODULES}", "kind": f"k{number % 10}"}
            clock = Clock(1, number + 1, 1)
            documents.append(DocumentWrite(key, bucket_of(key), clock, (chunk,), metadata, Origin(number + 1, number)))
        return documents


def _unit(rows: Floats) -> Floats:
    return cast(Floats, (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))


def made_version(name: str, number: int) -> IndexVersion:
    """A version of the index `documents` in a class of its own, without a database."""
    catalog = load(default_path())
    entry = next(index for index in catalog.indexes if index.name == "documents")
    index = Index.model_validate(entry.model_dump() | {"store": "weaviate", "class_name": name})
    model = catalog.model(index.model)
    spec = {"index": index.model_dump(mode="json"), "model": model.model_dump(mode="json")}
    mark = f"{number:016x}"
    return IndexVersion(
        number, index.name, number, mark, 1, index.collection, "building", "weaviate", "none", DIMENSION, spec, 0
    )


def connected(settings: Settings) -> Any:
    """The client as its own documentation makes it."""
    import weaviate
    from weaviate.connect import ConnectionParams

    from sophia.stores.weaviate_client import addresses

    http, grpc = addresses(settings.weaviate_url or "", settings.weaviate_grpc_url)
    client = weaviate.WeaviateClient(ConnectionParams.from_params(*http, False, *grpc, False), skip_init_checks=True)
    client.connect()
    return client


def bulk(store: WeaviateStore, client: Any, settings: Settings, name: str, data: Data, args: argparse.Namespace) -> Any:
    """Rates of the arms, objects a second, block by block in turn."""
    from weaviate.classes.data import DataObject

    versions = {arm: made_version(name, number) for number, arm in enumerate(ARMS, 1)}
    for version in versions.values():
        store.ensure(NOTHING, version)
    size, at_once = settings.weaviate.batch_objects, settings.weaviate.requests

    def by_store(documents: Sequence[DocumentWrite], objects: Sequence[Any]) -> None:
        refused = store.write(NOTHING, versions["store"], documents, "bench")
        assert refused == {}

    def by_batch(documents: Sequence[DocumentWrite], objects: Sequence[Any]) -> None:
        collection = client.collections.get(class_name(versions["batch"]))
        with collection.batch.fixed_size(batch_size=size, concurrent_requests=at_once) as batch:
            for each in objects:
                batch.add_object(properties=each.properties, uuid=each.uuid, vector=each.vector)
        assert collection.batch.failed_objects == []

    def by_list(documents: Sequence[DocumentWrite], objects: Sequence[Any]) -> None:
        collection = client.collections.get(class_name(versions["insert_many"]))
        for begin in range(0, len(objects), size):
            assert not collection.data.insert_many(objects[begin : begin + size]).has_errors

    work: dict[str, Callable[[Sequence[DocumentWrite], Sequence[Any]], None]] = {
        "store": by_store,
        "batch": by_batch,
        "insert_many": by_list,
    }
    rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
    rng = np.random.default_rng(args.seed)
    for number in range(args.blocks):
        first = number * args.block
        for arm in rng.permutation(ARMS):
            version = versions[arm]
            documents = data.documents(version, first, first + args.block)
            objects = [] if arm == "store" else _objects(version, documents, DataObject)
            began = time.perf_counter()
            work[arm](documents, objects)
            rates[arm].append(args.block / (time.perf_counter() - began))
    written = args.blocks * args.block
    for version in versions.values():
        assert store.counts(NOTHING, version) == (written, written), "an arm did not write all"
    return versions["store"], rates


def _objects(version: IndexVersion, documents: Sequence[DocumentWrite], make: Any) -> list[Any]:
    """What the store makes of these documents, as the client takes it."""
    from datetime import UTC, datetime

    layout = Layout.of(version)
    now = datetime.now(UTC)
    return [
        make(uuid=chunk.id, properties=layout.properties(write, chunk, "bench", now), vector=chunk.vector.tolist())
        for write in documents
        for chunk in write.chunks
        if chunk.vector is not None
    ]


def searches(store: WeaviateStore, version: IndexVersion, data: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds and recall of each kind of search."""
    queries = data.queries(args.queries)
    truth = np.argsort(-(queries @ data.vectors.T), axis=1)[:, :K]
    figures: dict[str, Any] = {}
    for name, filters in FILTERS.items():
        passed = np.arange(len(data.vectors))
        if filters:
            passed = passed[passed % MODULES == int(filters["module"][1:])]
            truth = passed[np.argsort(-(queries @ data.vectors[passed].T), axis=1)[:, :K]]
        figures[name] = _timed(store, version, queries, truth, filters=filters)
    figures["hybrid"] = _timed(store, version, queries, None, hybrid=True)
    return figures


def _timed(
    store: WeaviateStore, version: IndexVersion, queries: Floats, truth: npt.NDArray[Any] | None, **more: Any
) -> dict[str, Any]:
    times: list[float] = []
    found = 0
    for warm in (True, False):
        for number, vector in enumerate(queries[:50] if warm else queries):
            query = Query(vector=vector, text=f"word{number % 5_000} word{number * 7 % 5_000}", k=K, **more)
            began = time.perf_counter()
            hits = store.search(NOTHING, version, query)
            if warm:
                continue
            times.append((time.perf_counter() - began) * 1000)
            if truth is not None:
                wanted = {canonical_key([int(each)]) for each in truth[number]}
                found += len(wanted & {hit.key for hit in hits})
    recall = None if truth is None else found / truth.size
    return {"milliseconds": quantiles(times), "recall_at_10": recall}


def fill(store: WeaviateStore, version: IndexVersion, data: Data, first: int, settings: Settings) -> None:
    """Write what is missing up to the number of vectors."""
    step = settings.indexer.bulk_documents
    for begin in range(first, len(data.vectors), step):
        store.write(NOTHING, version, data.documents(version, begin, min(len(data.vectors), begin + step)), "bench")


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=100_000, help="objects that are searched")
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--blocks", type=int, default=9, help="blocks of each arm")
    parser.add_argument("--block", type=int, default=2_000, help="objects of a block: a bulk batch of the indexer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it runs")
    args = parser.parse_args()
    if args.quick:
        args.objects, args.queries, args.blocks, args.block = 2_000, 50, 3, 400
    url = os.environ.get("SOPHIA_TEST_WEAVIATE_URL")
    if url is None:
        raise SystemExit(
            "set SOPHIA_TEST_WEAVIATE_URL; `docker compose -f deploy/compose/weaviate.yaml up --detach --wait` starts "
            "a server at http://127.0.0.1:8080"
        )
    settings = load_settings(weaviate_url=url, weaviate_grpc_url=os.environ.get("SOPHIA_TEST_WEAVIATE_GRPC"))
    name = f"Bench{uuid.uuid4().hex[:8]}"
    store, client = WeaviateStore(settings), connected(settings)
    data = Data(max(args.objects, args.blocks * args.block), args.seed)
    try:
        server = client.get_meta()["version"]
        version, rates = bulk(store, client, settings, name, data, args)
        client.collections.delete([f"{name}_v{number}" for number in (2, 3)])
        fill(store, version, data, args.blocks * args.block, settings)
        found = searches(store, version, data, args)
    finally:
        client.collections.delete([f"{name}_v{number}" for number in range(1, len(ARMS) + 1)])
        client.close()
        store.close()
    medians = {arm: statistics.median(rates[arm]) for arm in ARMS}
    share = medians["store"] / max(medians["batch"], medians["insert_many"])
    rows = [(arm, medians[arm], min(rates[arm]), max(rates[arm])) for arm in ARMS]
    show(f"objects a second, {args.blocks} blocks of {args.block:,}", ("arm", "median", "least", "most"), rows)
    print(f"the store has {share:.0%} of the client's own rate")
    show(
        f"search among {len(data.vectors):,} objects, k = {K}: milliseconds",
        ("filter", "p50", "p95", "p99", "recall"),
        [
            (kind, *(each["milliseconds"][p] for p in ("p50", "p95", "p99")), _percent(each["recall_at_10"]))
            for kind, each in found.items()
        ],
    )
    figures = {
        "server": server,
        "objects": len(data.vectors),
        "bulk": {"rates": rates, "median": medians, "share_of_client": share},
        "search": found,
    }
    save("weaviate", figures, quick=args.quick)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


if __name__ == "__main__":
    main()
