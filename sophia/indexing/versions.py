"""Index versions: what an index's fingerprint stands for, and which version serves.

An index is collection + template + chunker + model + precision class + store. The fingerprint hashes these; another
fingerprint is another version, built beside the old one and promoted by a switch. Invariants:

* one version of an index serves; the search reads the version and its query model in one look-up;
* a version that is not retired is fed by the live lane, so a promoted version can be gone back from;
* a version begins its live lane at the collection's end, under the collection's lock, and leaves what is older to
  the bulk lane: no document falls between the two.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import TupleRow, class_row
from psycopg.types.json import Jsonb

from sophia import inbox, sql
from sophia.catalog import Catalog
from sophia.catalog.models import EmbeddingModel, Index
from sophia.embedding import model_fingerprint
from sophia.errors import ConfigurationError, SophiaError, TemporaryError
from sophia.settings import Profile

Connection = psycopg.Connection[TupleRow]
Q = sql.load("versions")
_NAMESPACE = uuid.UUID("5f0d7f0a-6a0e-5c1e-9b4e-3d7c6c7a1e52")


@dataclass(frozen=True, slots=True)
class IndexVersion:
    """One version of an index. `spec` holds the catalog entries (`index`, `model`) that it was made from."""

    id: int
    index_name: str
    number: int
    fingerprint: str
    collection_id: int
    collection: str
    state: str
    store: str
    store_name: str
    dimension: int
    spec: dict[str, Any]
    position: int

    @property
    def index(self) -> Index:
        """The index as the catalog had it when this version was made."""
        return Index.model_validate(self.spec["index"])

    @property
    def model(self) -> EmbeddingModel:
        """The model of this version's documents and queries."""
        return EmbeddingModel.model_validate(self.spec["model"])

    @property
    def model_fingerprint(self) -> str:
        """Of the model that the vectors were computed with, whatever its files are now."""
        return str(self.spec.get("model_fingerprint") or model_fingerprint(self.model, self.index.precision))

    @property
    def label(self) -> str:
        """`name v2`, for people."""
        return f"{self.index_name} v{self.number}"

    def chunk_id(self, key: str, chunk: int) -> uuid.UUID:
        """The deterministic id of a chunk: UUIDv5 of fingerprint, collection, key and chunk number."""
        return uuid.uuid5(_NAMESPACE, json.dumps([self.fingerprint, self.collection, key, chunk]))


def fingerprint(index: Index, model: EmbeddingModel, store: str) -> str:
    """Sixteen hex digits over all that decides an index's contents. The backend that computes is provenance only."""
    parts = {
        "collection": index.collection,
        "template": index.template,
        "chunk": [index.chunk_tokens, index.chunk_overlap],
        "metadata": list(index.metadata),
        "precision": index.precision,
        "model": model_fingerprint(model, index.precision),
        "store": [store, index.class_name],
        "shards": index.shards,
    }
    if index.vector is not None:
        parts["vector"] = index.vector
    if store == "weaviate":
        tenant = index.required_filter if index.weaviate.tenancy else None
        parts["weaviate"] = [index.weaviate.model_dump(mode="json", exclude={"generative"}), tenant]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def local_indexes(catalog: Catalog, profile: Profile) -> list[Index]:
    """The indexes that have a store and a source in this profile; the others are plan-only here."""
    return [
        index
        for index in catalog.indexes
        if index.store.for_profile(profile) and catalog.collection(index.collection).source.for_profile(profile)
    ]


def ensure_version(connection: Connection, catalog: Catalog, index: Index, profile: Profile) -> IndexVersion:
    """The version of the index as the catalog has it now, created if it is new.

    The first version of an index serves at once; a later one is built beside it until it is promoted.

    Raises:
        ConfigurationError: the index has no store in this profile.
        TemporaryError: the same version ended, and what a store outside of the database has of it is still there.
    """
    store = index.store.for_profile(profile)
    if store is None:
        raise ConfigurationError(f"index {index.name!r} has no store in profile {profile!r}: it is plan-only here")
    model = catalog.model(index.model)
    mark = fingerprint(index, model, store)
    with connection.transaction():
        connection.execute(Q["lock_index"], {"name": index.name})
        collection_id = inbox.ensure_collection(connection, index.collection)
        found = connection.execute(Q["find"], {"name": index.name, "fingerprint": mark}).fetchone()
        if found is None:
            connection.execute(Q["lock_position"], {"collection_id": collection_id})
            row = connection.execute(
                Q["create"],
                {
                    "name": index.name,
                    "fingerprint": mark,
                    "collection_id": collection_id,
                    "store": store,
                    "model": model.name,
                    "dimension": model.dimension,
                    "spec": Jsonb(
                        {
                            "index": index.model_dump(mode="json"),
                            "model": model.model_dump(mode="json"),
                            "model_fingerprint": model_fingerprint(model, index.precision),
                        }
                    ),
                },
            ).fetchone()
            assert row is not None  # noqa: S101
            connection.execute(Q["create_shards"], {"version_id": row[0], "shards": index.shards})
            if row[1] == "serving" and store != "pgvector":
                intent = {"name": index.name, "version_id": row[0], "done": False}
                connection.execute(sql.load("publication")["intend"], intent)
        elif found[2]:
            raise TemporaryError(
                f"a former version of {index.name!r} with the same contents has ended, and is still to be removed from "
                f"{store}; the indexer does that when the store answers"
            )
        elif found[1] == "retired":
            # Its store is gone: build it again, under the same ids.
            connection.execute(Q["lock_position"], {"collection_id": collection_id})
            connection.execute(Q["forget"], {"version_id": found[0]})
            connection.execute(Q["revive"], {"version_id": found[0]})
            connection.execute(Q["drop_shards"], {"version_id": found[0]})
            connection.execute(Q["create_shards"], {"version_id": found[0], "shards": index.shards})
        if found is not None:
            # What is no part of the identity may have changed: a filter that is required now, another kind of graph.
            entries = {"index": index.model_dump(mode="json"), "model": model.model_dump(mode="json")}
            connection.execute(Q["keep_entries"], {"version_id": found[0], "entries": Jsonb(entries)})
    return next(v for v in active_versions(connection) if v.index_name == index.name and v.fingerprint == mark)


def require_model(version: IndexVersion) -> None:
    """Check that the model of a version still is what its vectors were computed with.

    Raises:
        ConfigurationError: the model's files were replaced in place.
    """
    present = model_fingerprint(version.model, version.index.precision)
    if present != version.spec.get("model_fingerprint", present):
        raise ConfigurationError(
            f"{version.label}: the files of model {version.model.name!r} are not those that its vectors were computed "
            "with; put the former files back, or rebuild the index and promote the new version"
        )


def active_versions(connection: Connection) -> list[IndexVersion]:
    """Every version that is fed: building, serving or retiring."""
    with connection.cursor(row_factory=class_row(IndexVersion)) as cursor:
        return cursor.execute(Q["all"]).fetchall()


def numbered_version(connection: Connection, name: str, number: int) -> IndexVersion:
    """Version `number` of an index, if it is fed.

    Raises:
        SophiaError: there is none; those that are there are named.
    """
    known = [version for version in active_versions(connection) if version.index_name == name]
    for version in known:
        if version.number == number:
            return version
    there = ", ".join(f"{v.number} ({v.state})" for v in known)
    raise SophiaError(f"index {name!r} has no version {number} that is fed; there are: {there or 'none'}")


def candidate_version(connection: Connection, catalog: Catalog, index: Index, profile: Profile) -> IndexVersion | None:
    """The version that the catalog asks for, as far as it was begun; None before. Changes nothing."""
    store = index.store.for_profile(profile)
    mark = fingerprint(index, catalog.model(index.model), store) if store else None
    found = (v for v in active_versions(connection) if v.index_name == index.name and v.fingerprint == mark)
    return next(found, None)


def serving_version(connection: Connection, name: str) -> IndexVersion:
    """The version of an index that searches read.

    Raises:
        SophiaError: the index does not exist or was never built; similar names are proposed.
    """
    with connection.cursor(row_factory=class_row(IndexVersion)) as cursor:
        version = cursor.execute(Q["serving"], {"name": name}).fetchone()
    if version is None:
        known = sorted({v.index_name for v in active_versions(connection)})
        raise SophiaError(
            f"index {name!r} does not exist here; there are: {', '.join(known) or 'none yet (run `make demo`)'}"
        )
    return version
