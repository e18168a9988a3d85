"""Where rows come from, and which indexes they become: sources, collections, embedding models, indexes."""

from __future__ import annotations

import re
import string
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sophia.catalog.models.base import Column, Entry, EnvName, Frozen, Owner, PerProfile
from sophia.catalog.models.weaviate import WeaviateOptions

StoreKind = Literal["pgvector", "weaviate", "pinecone"]
ColumnType = Annotated[
    str,
    Field(
        pattern=r"^(bool|int2|int4|int8|numeric|float4|float8|text|varchar|bpchar|citext|bytea|uuid|json|jsonb"
        r"|date|time|timetz|timestamp|timestamptz|interval)(\[\])?$"
    ),
]
"""A PostgreSQL type by its short name; [] makes an array of it."""
GraphKind = Literal["full", "half", "binary"]
Precision = Literal["exact", "fast", "int8"]
# PostgreSQL cuts names off at 63 bytes, and `<name>_v<number>_field<number>` must stay whole.
LONGEST_INDEX_NAME = 48


class DataEntry(Entry):
    """An entry that the data team owns unless it says otherwise."""

    owners: tuple[Owner, ...] = Field(
        default=("team:data",), min_length=1, description="Who answers for it: team:x or e-mail."
    )


class Source(DataEntry):
    """A system that changes come from."""

    kind: Literal["postgres", "snowflake", "estuary"] = Field(description="Which capture reads it.")
    url_env: EnvName | None = Field(
        default=None,
        description="Variable that holds the DSN; null: the platform's own database. Of Estuary: of the database "
        "behind it, from which rows are read again; null: none.",
    )
    publication: str = Field(
        default="sophia_publication",
        pattern=r"^[a-z_][a-z0-9_]{0,62}$",
        description="PostgreSQL publication that names the captured tables.",
    )
    slot: str = Field(
        default="sophia_slot",
        # Temporary slots have its name with an ending; PostgreSQL cuts names off at 63 bytes.
        pattern=r"^[a-z_][a-z0-9_]{0,49}$",
        description="PostgreSQL replication slot; its life is the source's generation.",
    )
    private_key_env: EnvName | None = Field(
        default=None,
        description="Snowflake: variable that holds the role's private key, as PKCS8 PEM or the path of such a file; "
        "null: the URL has a password.",
    )
    passphrase_env: EnvName | None = Field(
        default=None, description="Snowflake: variable that holds the passphrase of an encrypted private key."
    )
    staging_schema: str = Field(
        default="SOPHIA_STAGING",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Snowflake schema for the streams and what they are staged in; the role must own it.",
    )

    @model_validator(mode="after")
    def _url_where_needed(self) -> Source:
        if self.kind == "snowflake" and self.url_env is None:
            raise ValueError("url_env is required for a snowflake source")
        return self


class SnowflakeTable(Frozen):
    """How a table in Snowflake is captured."""

    method: Literal["stream", "cursor"] = Field(
        default="stream",
        description="stream: every change, deletes included, by a Snowflake stream. cursor: rows whose cursor column "
        "rose; deletes are found by comparing all keys.",
    )
    cursor: Column | None = Field(
        default=None, description="Timestamp or number that rises with each change of a row; for the method cursor."
    )
    poll_seconds: float = Field(default=60.0, gt=0, description="Seconds between two looks at the table.")
    look_back: float = Field(
        default=300.0,
        ge=0,
        description="How far behind the cursor rows are read again, for those that committed late: seconds of a "
        "timestamp, units of a number.",
    )
    compare_hours: float = Field(
        default=24.0, ge=0, description="Method cursor: hours between two comparisons of all keys; 0 for none."
    )
    compare: Literal["keys", "rows"] = Field(
        default="keys",
        description="What a comparison reads: keys and cursor, or whole rows, which also finds changes that did not "
        "move the cursor.",
    )

    @model_validator(mode="after")
    def _cursor_where_needed(self) -> SnowflakeTable:
        if self.method == "cursor" and self.cursor is None:
            raise ValueError("cursor names no column; the method cursor needs one")
        return self


class Collection(DataEntry):
    """One table's (or Estuary collection's) documents, by key."""

    source: PerProfile = Field(description="Name of the source, per profile; null: plan only.")
    table: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_][A-Za-z0-9_]*$",
        description="schema.table in the source; null when only Estuary has it.",
    )
    estuary: str = Field(
        pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)+$",
        description="Full Estuary name, such as sophia/conversations.",
    )
    key: tuple[Column, ...] = Field(
        default=(), description="Columns that identify a document; empty: the table's primary key."
    )
    history: bool = Field(
        default=False,
        description="Estuary's capture keeps every change apart (history mode): a changed key is an exact move. Else "
        "what became of the old key is read from the source.",
    )
    columns: dict[Column, ColumnType] = Field(
        default_factory=dict,
        description="Columns by PostgreSQL type, for Estuary's schema where the source cannot be asked.",
    )
    snowflake: SnowflakeTable = Field(
        default=SnowflakeTable(), description="How its table is captured where the source is Snowflake."
    )
    retention_days: int | None = Field(
        default=None, ge=1, description="Days a document lives after its last change; null: for ever."
    )
    max_lag_seconds: int = Field(
        default=300, ge=1, description="Age of the newest received position at which the collection is late."
    )

    @model_validator(mode="after")
    def _identifiable(self) -> Collection:
        if self.table is None and not self.key:
            raise ValueError("key is required without a table")
        if len(set(self.key)) != len(self.key):
            raise ValueError("key names a column twice")
        return self


class Retention(Frozen):
    """How long the platform keeps its own records of documents, in days."""

    inbox_days: int = Field(default=30, ge=1, description="Applied changes in the inbox's append log.")
    tombstone_days: int = Field(
        default=90, ge=1, description="Deleted keys; longer than any replay of a source may reach back."
    )
    ledger_days: int = Field(default=30, ge=1, description="Ledger rows of retired index versions.")
    retire_after_days: int = Field(
        default=7, ge=1, description="Index versions that stopped serving; until then a rollback is one command."
    )
    cache_days: int = Field(default=90, ge=1, description="Embeddings not used since.")
    dead_letter_days: int = Field(default=30, ge=1, description="Documents parked for a person.")


class EmbeddingModel(DataEntry):
    """A model that turns text into vectors."""

    provider: Literal["sentence-transformers", "openai"] = Field(
        description="sentence-transformers runs here; openai is any server that speaks that API."
    )
    path: str | None = Field(
        default=None, description="Model name, folder, or package:NAME for weights in a pip package."
    )
    url: str | None = Field(
        default=None, pattern=r"^https?://", description="Base URL of the embedding API, for openai."
    )
    key_env: EnvName | None = Field(default=None, description="Variable that holds the API key, for openai.")
    model: str | None = Field(default=None, description="Model name that the API expects, for openai.")
    dimension: int = Field(ge=1, le=65535, description="Length of a vector.")
    max_tokens: int = Field(ge=8, description="Longest input, in the model's own tokens.")
    query_prefix: str = Field(default="", description="Put before a query's text.")
    document_prefix: str = Field(default="", description="Put before a document's text.")
    version: str = Field(min_length=1, description="Version as registered in the model registry.")

    @model_validator(mode="after")
    def _reachable(self) -> EmbeddingModel:
        if self.provider == "sentence-transformers" and self.path is None:
            raise ValueError("path is required for a sentence-transformers model")
        if self.provider == "openai" and (self.url is None or self.model is None):
            raise ValueError("url and model are required for an openai model")
        return self


class StorePerProfile(PerProfile):
    """The vector store of each profile."""

    local: StoreKind | None = Field(default=None, description="Store in the local profile; null: plan only.")
    cluster: StoreKind | None = Field(default=None, description="Store in the cluster profile; null: plan only.")


class Index(DataEntry):
    """A collection's documents as searchable vectors."""

    collection: str = Field(description="Name of the collection that feeds it.")
    model: str = Field(description="Name of the embedding model.")
    template: str = Field(description="Text of a document; {column} stands for the row's value.")
    vector: Column | None = Field(
        default=None,
        description="Column that holds ready-made vectors, as lists of numbers: they are stored, not computed, and the "
        "model embeds queries only. The text is not cut then.",
    )
    chunk_tokens: int = Field(ge=8, description="Longest chunk, in the model's tokens.")
    chunk_overlap: int = Field(default=0, ge=0, description="Tokens shared by neighbouring chunks.")
    metadata: tuple[Column, ...] = Field(
        default=(), description="Columns kept beside the vector, to filter a search by."
    )
    precision: Precision = Field(default="exact", description="Numeric class of the embedding computation.")
    store: StorePerProfile = Field(description="pgvector, weaviate or pinecone; per profile.")
    class_name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z][A-Za-z0-9_-]*$",
        description="The store's own name for it, such as SophiaMemory.",
    )
    graph: GraphKind = Field(
        default="full",
        description="What pgvector's nearest-neighbour graph holds of a vector: all of it, half precision (half the "
        "memory, up to 4,000 dimensions), or a bit a dimension (a thirty-second). The order of results is that of the "
        "whole vectors in any case.",
    )
    weaviate: WeaviateOptions = Field(default=WeaviateOptions(), description="Options of its Weaviate class.")
    shards: int = Field(default=16, description="Hash-prefix partitions: a power of two from 1 to 256.")
    required_filter: Column | None = Field(
        default=None, description="Metadata column (tenant or row filter) that every search must give."
    )
    max_lag_seconds: float = Field(
        default=60.0, gt=0, description="Lag behind the collection at which the index is late."
    )

    @property
    def template_columns(self) -> tuple[str, ...]:
        """Columns that the template reads, in order of first use."""
        names = (field for _, field, _, _ in string.Formatter().parse(self.template) if field)
        return tuple(dict.fromkeys(names))

    @field_validator("template")
    @classmethod
    def _plain_placeholders(cls, value: str) -> str:
        # Only whole columns: attribute and index access in a format string would reach into objects.
        columns = 0
        for _, field, spec, conversion in string.Formatter().parse(value):
            if field is None:
                continue
            if not field.isidentifier() or spec or conversion:
                raise ValueError(f"placeholder {{{field}}} must be a plain column name")
            columns += 1
        if columns == 0:
            raise ValueError("needs at least one {column}")
        return value

    @field_validator("name")
    @classmethod
    def _leaves_room(cls, value: str) -> str:
        if len(value) > LONGEST_INDEX_NAME:
            raise ValueError(
                f"has {len(value)} characters; at most {LONGEST_INDEX_NAME}, since the tables of its versions and "
                "their indexes are named after it"
            )
        return value

    @field_validator("shards")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if not 1 <= value <= 256 or value & (value - 1):
            raise ValueError("must be a power of two from 1 to 256")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Index:
        if self.chunk_overlap >= self.chunk_tokens:
            raise ValueError("chunk_overlap must be smaller than chunk_tokens")
        if len(set(self.metadata)) != len(self.metadata):
            raise ValueError("metadata names a column twice")
        if self.vector is not None and self.vector in (*self.metadata, *self.template_columns):
            raise ValueError(f'vector "{self.vector}" is also in the template or in metadata')
        if self.required_filter is not None and self.required_filter not in self.metadata:
            raise ValueError(f'required_filter "{self.required_filter}" is not in metadata')
        external = {self.store.local, self.store.cluster} & {"weaviate", "pinecone"}
        if external and self.class_name is None:
            raise ValueError(f"class_name is required for {' and '.join(sorted(map(str, external)))}")
        if "weaviate" in external:
            self._fits_weaviate()
        return self

    def _fits_weaviate(self) -> None:
        if re.fullmatch(r"[A-Z][A-Za-z0-9_]*", self.class_name or "") is None:
            raise ValueError(
                f'class_name "{self.class_name}" is no name of a Weaviate class: a capital, then letters, digits, _'
            )
        unknown = sorted(set(self.weaviate.properties) - set(self.metadata))
        if unknown:
            raise ValueError(f'weaviate.properties names "{unknown[0]}", which is not in metadata')
        if self.weaviate.tenancy and self.required_filter is None:
            raise ValueError("weaviate.tenancy needs required_filter, whose values are the tenants")
        names = [self.weaviate.property_name(column) for column in self.metadata]
        for name in names:
            if name in ("id", "vector", "content") or name.startswith(("sophia_", "_")) or names.count(name) > 1:
                raise ValueError(
                    f'the property name "{name}" is taken in a Weaviate class; give the column another one in '
                    "weaviate.properties"
                )
