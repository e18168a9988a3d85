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
    PRIMARY KEY (materialization, collections, published_at_min, published_at_max)
);
-- The watermark of a collection by its full Estuary name.
CREATE TABLE sophia.estuary_watermarks (
    collection       text PRIMARY KEY,
    published_at_max timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL DEFAULT now()
);
