-- A store outside of this database is written between two transactions: state is `pending` from the first to the
-- second. `held` is how many chunks of a key such a store may hold, so that a surplus is removed also after a crash.
ALTER TABLE sophia.ledger ADD COLUMN held integer NOT NULL DEFAULT 0;
CREATE INDEX ledger_pending ON sophia.ledger (version_id) WHERE state = 'pending';

-- Rows that must be read from their source again because a delivery does not tell what became of them. `clock` is the
-- delivery's; what is read bears it with an ordinal one higher, so that it outranks that delivery and nothing later.
CREATE TABLE sophia.rereads (
    collection_id integer NOT NULL REFERENCES sophia.collections (id),
    key           text NOT NULL,
    clock         bigint[] NOT NULL,
    reason        text NOT NULL,
    requested_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (collection_id, key)
);

-- Estuary's commit triggers: everything of these collections up to `published_at_max` was delivered and committed.
CREATE TABLE sophia.estuary_commits (
    materialization  text NOT NULL,
    collections      text[] NOT NULL,
    published_at_min timestamptz NOT NULL,
    published_at_max timestamptz NOT NULL,
    received_at      timestamptz NOT NULL DEFAULT now(),
    -- SHA-256 of the collections, which may be too many for an index entry.
    digest           bytea NOT NULL,
    PRIMARY KEY (materialization, digest, published_at_min, published_at_max)
);
-- The watermark of a collection by its full Estuary name.
CREATE TABLE sophia.estuary_watermarks (
    collection       text PRIMARY KEY,
    published_at_max timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL DEFAULT now()
);

-- Tenants of a store with multi-tenancy that may hold something of a key: noted before the store is written, so that a
-- document that moves to another tenant is removed from its former one also after a crash.
CREATE TABLE sophia.store_tenants (
    version_id integer NOT NULL REFERENCES sophia.index_versions (id),
    key        text NOT NULL,
    tenant     text NOT NULL,
    PRIMARY KEY (version_id, key, tenant)
);

-- How far a table in Snowflake was read; what every capture has is in `captured_tables`. Stored with the documents.
CREATE TABLE sophia.snowflake_tables (
    source        text NOT NULL,
    collection_id integer NOT NULL,
    -- Method cursor: every row up to this value of the cursor column is in the inbox, as text that Snowflake reads.
    cursor_value  text,
    compared_at   timestamptz,
    -- Method stream: the name of the stream and of its staging table; staged rows up to (seq, off) are in the inbox.
    stream        text,
    seq           bigint NOT NULL DEFAULT 0,
    off           bigint NOT NULL DEFAULT -1,
    PRIMARY KEY (source, collection_id),
    FOREIGN KEY (source, collection_id) REFERENCES sophia.captured_tables (source, collection_id)
);

-- What the last look at Estuary's metrics saw of a task with a collection, so that the next one sees what moved. The
-- totals are Estuary's, of the calendar month.
CREATE TABLE sophia.estuary_movements (
    task          text NOT NULL,
    collection    text NOT NULL,
    docs          double precision NOT NULL,
    written       double precision NOT NULL,
    moved_at      timestamptz,
    waiting_since timestamptz,
    observed_at   timestamptz NOT NULL,
    PRIMARY KEY (task, collection)
);

-- What Estuary delivered and Sophia cannot take, with its text, so that nothing is lost; a redelivery adds no row.
CREATE TABLE sophia.parked (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- NULL for commit events.
    collection_id integer REFERENCES sophia.collections (id),
    -- The collection's full Estuary name; `/events` for commit events.
    name          text NOT NULL,
    key           text,
    clock         bigint[],
    -- 1: `body` is one document. More: an array of so many. 0: a body that cannot be parted.
    documents     integer NOT NULL,
    digest        bytea NOT NULL,
    reason        text NOT NULL,
    body          bytea NOT NULL,
    attempts      integer NOT NULL DEFAULT 1,
    received_at   timestamptz NOT NULL DEFAULT now(),
    last_seen     timestamptz NOT NULL DEFAULT now(),
    UNIQUE (name, digest)
);
CREATE INDEX parked_key ON sophia.parked (collection_id, key);

-- The public name of an index in a store outside of the database is moved by a call to that store, after the switch has
-- committed. `done` is false from the switch until that call has succeeded; it may be repeated.
CREATE TABLE sophia.publications (
    index_name text PRIMARY KEY,
    version_id integer NOT NULL REFERENCES sophia.index_versions (id),
    done       boolean NOT NULL DEFAULT false,
    at         timestamptz NOT NULL DEFAULT now()
);
-- A retired version whose store outside of the database has still to be dropped.
ALTER TABLE sophia.index_versions ADD COLUMN undropped boolean NOT NULL DEFAULT false;
