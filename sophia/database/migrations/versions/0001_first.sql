-- Clocks are bigint[] of exactly three: {generation, position, ordinal}. PostgreSQL compares arrays element by
-- element, which is the order we want, so `<` in SQL and tuple comparison in Python agree.

CREATE EXTENSION IF NOT EXISTS vector;
CREATE SCHEMA IF NOT EXISTS indexes;

-- One row a collection. Its row lock serialises the writers of one collection, so that positions become visible
-- in their order: a reader that has seen position n will never see a smaller one appear later.
CREATE TABLE sophia.collections (
    id            integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          text NOT NULL UNIQUE,
    key_fields    text[] NOT NULL DEFAULT '{}',
    generation    bigint NOT NULL DEFAULT 1,
    -- What is older than the floor is void: set by TRUNCATE and by a new generation's snapshot point.
    floor         bigint[] NOT NULL DEFAULT '{0,0,0}',
    position      bigint NOT NULL DEFAULT 0,
    -- Position of the newest document that came on the bulk lane (snapshot, huge transaction).
    bulk_position bigint NOT NULL DEFAULT 0,
    -- Everything up to this source position is in the inbox; its commit time is the watermark.
    source_lsn    pg_lsn,
    source_time   timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now()
);

-- The current document of every key: merged, fenced by its clock, kept as a tombstone after a delete.
CREATE TABLE sophia.documents (
    collection_id integer NOT NULL REFERENCES sophia.collections (id),
    key           text NOT NULL,
    bucket        integer NOT NULL,
    position      bigint NOT NULL,
    clock         bigint[] NOT NULL,
    deleted       boolean NOT NULL DEFAULT false,
    bulk          boolean NOT NULL DEFAULT false,
    -- Columns that the source left out and that we never had; '*' when a parked document hides the whole row.
    missing       text[] NOT NULL DEFAULT '{}',
    body          jsonb,
    lsn           pg_lsn,
    txid          bigint,
    committed_at  timestamptz,
    received_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (collection_id, key)
) WITH (fillfactor = 85);
CREATE INDEX documents_live ON sophia.documents (collection_id, position) WHERE NOT bulk;
CREATE INDEX documents_bucket ON sophia.documents (collection_id, bucket);
CREATE INDEX documents_missing ON sophia.documents (collection_id) WHERE missing <> '{}';

-- The append log: which change was taken, when. It holds no text, so that erasing a document need not rewrite it.
CREATE TABLE sophia.inbox (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collection_id integer NOT NULL REFERENCES sophia.collections (id),
    key           text NOT NULL,
    op            "char" NOT NULL,
    clock         bigint[] NOT NULL,
    lsn           pg_lsn,
    txid          bigint,
    committed_at  timestamptz,
    received_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX inbox_key ON sophia.inbox (collection_id, key);
CREATE INDEX inbox_age ON sophia.inbox USING brin (received_at);

-- What a capture has made durable. One row a source.
CREATE TABLE sophia.captures (
    source            text PRIMARY KEY,
    slot              text NOT NULL,
    publication       text NOT NULL,
    system_identifier text NOT NULL,
    confirmed_lsn     pg_lsn,
    epoch             bigint NOT NULL DEFAULT 0,
    updated_at        timestamptz NOT NULL DEFAULT now()
);

-- The tables of a capture. A table counts as captured only once its snapshot is complete.
CREATE TABLE sophia.captured_tables (
    source           text NOT NULL REFERENCES sophia.captures (source),
    collection_id    integer NOT NULL REFERENCES sophia.collections (id),
    table_name       text NOT NULL,
    relation_oid     bigint NOT NULL,
    consistent_point pg_lsn NOT NULL,
    rows             bigint NOT NULL DEFAULT 0,
    complete         boolean NOT NULL DEFAULT false,
    started_at       timestamptz NOT NULL DEFAULT now(),
    completed_at     timestamptz,
    PRIMARY KEY (source, collection_id)
);

-- One row a version of an index. The version that serves is the one a search reads.
CREATE TABLE sophia.index_versions (
    id            integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    index_name    text NOT NULL,
    number        integer NOT NULL,
    fingerprint   text NOT NULL,
    collection_id integer NOT NULL REFERENCES sophia.collections (id),
    state         text NOT NULL CHECK (state IN ('building', 'serving', 'retiring', 'retired')),
    store         text NOT NULL,
    store_name    text NOT NULL,
    model         text NOT NULL,
    dimension     integer NOT NULL,
    spec          jsonb NOT NULL,
    -- Live lane: everything up to this position of the collection is in the store.
    position      bigint NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    promoted_at   timestamptz,
    UNIQUE (index_name, number),
    UNIQUE (index_name, fingerprint)
);
CREATE UNIQUE INDEX one_serving ON sophia.index_versions (index_name) WHERE state = 'serving';

-- Bulk lane: hash-prefix shards of a version. A shard was compared with all documents up to `position`.
CREATE TABLE sophia.shards (
    version_id integer NOT NULL REFERENCES sophia.index_versions (id),
    shard      integer NOT NULL,
    position   bigint NOT NULL DEFAULT -1,
    checked_at timestamptz,
    PRIMARY KEY (version_id, shard)
);

-- What the store of a version holds, a row a key. state: applied | parked (the document cannot be indexed; the
-- store holds nothing of it). A deleted key stays as a tombstone (no chunks, deleted), so that a late writer with
-- an older clock cannot bring it back.
CREATE TABLE sophia.ledger (
    version_id     integer NOT NULL REFERENCES sophia.index_versions (id),
    key            text NOT NULL,
    bucket         integer NOT NULL,
    clock          bigint[] NOT NULL,
    state          text NOT NULL,
    deleted        boolean NOT NULL DEFAULT false,
    content_hashes bytea[] NOT NULL DEFAULT '{}',
    vector_hashes  bytea[] NOT NULL DEFAULT '{}',
    run            text NOT NULL,
    updated_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (version_id, key)
) WITH (fillfactor = 85);
CREATE INDEX ledger_bucket ON sophia.ledger (version_id, bucket);
CREATE INDEX ledger_parked ON sophia.ledger (version_id) WHERE state = 'parked';

-- Who may write what. Every taking raises the epoch; a writer's transaction checks it.
CREATE TABLE sophia.leases (
    name       text PRIMARY KEY,
    epoch      bigint NOT NULL,
    holder     text NOT NULL,
    -- The holder's database session. When it is gone, so is the holder.
    backend    integer NOT NULL,
    started    timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);

-- One row a batch that an indexer or repair run applied: the lag history, the feed, the run's figures.
CREATE TABLE sophia.batches (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version_id integer NOT NULL REFERENCES sophia.index_versions (id),
    lane       text NOT NULL,
    run        text NOT NULL,
    documents  integer NOT NULL,
    embedded   integer NOT NULL,
    reused     integer NOT NULL,
    deleted    integer NOT NULL,
    tokens     integer NOT NULL,
    embed_ms   real NOT NULL,
    -- From taking the batch up to its last write, embedding included.
    apply_ms   real NOT NULL,
    lag_ms     real,
    keys       text[] NOT NULL DEFAULT '{}',
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX batches_time ON sophia.batches (version_id, applied_at);

CREATE TABLE sophia.dead_letters (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collection_id integer REFERENCES sophia.collections (id),
    key           text,
    version_id    integer REFERENCES sophia.index_versions (id),
    stage         text NOT NULL CHECK (stage IN ('capture', 'inbox', 'index')),
    reason        text NOT NULL,
    clock         bigint[],
    attempts      integer NOT NULL DEFAULT 1,
    first_seen    timestamptz NOT NULL DEFAULT now(),
    last_seen     timestamptz NOT NULL DEFAULT now()
);
-- One row a fault of a key, however often it recurs (NULLS NOT DISTINCT would need PostgreSQL 15).
CREATE UNIQUE INDEX dead_letters_once ON sophia.dead_letters
    (COALESCE(collection_id, 0), COALESCE(key, ''), COALESCE(version_id, 0), stage);
