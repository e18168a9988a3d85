-- A snapshot that was cut off goes on behind the last key that it brought: the key columns' values as text.
ALTER TABLE sophia.captured_tables ADD COLUMN last_key text[];

-- When a version stopped serving; a rollback goes to the one that stopped last.
ALTER TABLE sophia.index_versions ADD COLUMN superseded_at timestamptz;

-- Which process wrote: `run` of the ledger, the batches and the stores leads here.
CREATE TABLE sophia.runs (
    run        text PRIMARY KEY,
    kind       text NOT NULL,
    code       text NOT NULL,
    image      text,
    host       text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now()
);

-- How far the continuous verification of a version is. `verified` is the collection's position up to which changes
-- were compared; the deep scan reads the store itself, bucket by bucket, and starts over after the last.
CREATE TABLE sophia.scans (
    version_id     integer PRIMARY KEY REFERENCES sophia.index_versions (id),
    verified       bigint NOT NULL DEFAULT 0,
    verified_at    timestamptz,
    next_bucket    integer NOT NULL DEFAULT 0,
    cycle_began_at timestamptz,
    -- Of the last whole cycle, in seconds, and when it ended.
    cycle_seconds  real,
    cycle_ended_at timestamptz,
    -- Keys found wrong, and mended, since the version exists.
    found          bigint NOT NULL DEFAULT 0,
    repaired       bigint NOT NULL DEFAULT 0
);

-- What remains of an erased document: the hash of its key, and the clock up to which every delivery is void.
CREATE TABLE sophia.erasures (
    collection_id integer NOT NULL REFERENCES sophia.collections (id),
    key_hash      bytea NOT NULL,
    clock         bigint[] NOT NULL,
    erased_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (collection_id, key_hash)
);
-- Read with the collection's lock, so that a collection without erasures pays nothing for them.
ALTER TABLE sophia.collections ADD COLUMN erasures integer NOT NULL DEFAULT 0;

-- The columns with types and collations, and the key, that the documents were made from. ALTER TABLE streams no row, so
-- documents of another shape are copied again; and of another order of keys `last_key` would mean nothing.
ALTER TABLE sophia.captured_tables ADD COLUMN shape text;

-- The newest live batches, however many bulk ones lie between them: the lag is read at every look.
CREATE INDEX batches_live ON sophia.batches (version_id, applied_at) WHERE lane = 'live';
