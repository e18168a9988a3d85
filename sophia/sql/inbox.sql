-- name: lock_collection
-- Serialises the writers of one collection until commit; positions are handed out under this lock.
SELECT id, generation, floor, position FROM sophia.collections WHERE name = %(name)s FOR UPDATE

-- name: bases
-- What partial documents are merged into: the current documents of these keys.
SELECT key, clock, deleted, body, missing FROM sophia.documents
WHERE collection_id = %(collection_id)s AND key = ANY(%(keys)s)

-- name: upsert
-- One row a key. A row older than or equal to what is stored changes nothing. Deletes clear the body.
INSERT INTO sophia.documents AS d (collection_id, key, bucket, position, clock, deleted, bulk, missing, body,
                                   lsn, txid, committed_at)
SELECT %(collection_id)s, u.key, u.bucket, %(position)s + u.ordinality, u.clock::bigint[], u.deleted, u.bulk,
       u.missing::text[], u.body::jsonb, u.lsn::pg_lsn, u.txid, u.committed_at
FROM unnest(%(keys)s::text[], %(buckets)s::int[], %(clocks)s::text[], %(deleted)s::bool[], %(bulk)s::bool[],
            %(missing)s::text[], %(bodies)s::text[], %(lsns)s::text[], %(txids)s::bigint[],
            %(times)s::timestamptz[])
     WITH ORDINALITY AS u (key, bucket, clock, deleted, bulk, missing, body, lsn, txid, committed_at, ordinality)
ON CONFLICT (collection_id, key) DO UPDATE
SET position = EXCLUDED.position, clock = EXCLUDED.clock, deleted = EXCLUDED.deleted, bulk = EXCLUDED.bulk,
    missing = EXCLUDED.missing, body = EXCLUDED.body, lsn = EXCLUDED.lsn, txid = EXCLUDED.txid,
    committed_at = EXCLUDED.committed_at, received_at = clock_timestamp()
WHERE d.clock < EXCLUDED.clock

-- name: append
INSERT INTO sophia.inbox (collection_id, key, op, clock, lsn, txid, committed_at)
SELECT %(collection_id)s, u.key, u.op::"char", u.clock::bigint[], u.lsn::pg_lsn, u.txid, u.committed_at
FROM unnest(%(keys)s::text[], %(ops)s::text[], %(clocks)s::text[], %(lsns)s::text[], %(txids)s::bigint[],
            %(times)s::timestamptz[]) AS u (key, op, clock, lsn, txid, committed_at)

-- name: advance
UPDATE sophia.collections
SET position = position + %(count)s,
    bulk_position = CASE WHEN %(bulk)s THEN position + %(count)s ELSE bulk_position END,
    source_lsn = GREATEST(source_lsn, %(lsn)s::pg_lsn),
    source_time = GREATEST(source_time, %(time)s)
WHERE id = %(collection_id)s

-- name: raise_floor
-- TRUNCATE and new generations: what is older than the floor is void from now on.
UPDATE sophia.collections
SET floor = GREATEST(floor, %(floor)s::bigint[]), generation = GREATEST(generation, %(generation)s)
WHERE id = %(collection_id)s

-- name: sweep
-- Turn every document older than the floor into a tombstone that bears the floor's clock.
WITH doomed AS (
    SELECT key, row_number() OVER () AS n FROM sophia.documents
    WHERE collection_id = %(collection_id)s AND NOT deleted AND clock < %(floor)s::bigint[]
), swept AS (
    UPDATE sophia.documents d
    SET deleted = true, body = NULL, missing = '{}', clock = %(floor)s::bigint[], bulk = %(bulk)s,
        position = c.position + doomed.n, lsn = %(lsn)s::pg_lsn, txid = NULL, committed_at = %(time)s,
        received_at = clock_timestamp()
    FROM doomed, sophia.collections c
    WHERE d.collection_id = %(collection_id)s AND d.key = doomed.key AND c.id = %(collection_id)s
    RETURNING 1
)
SELECT count(*) FROM swept

-- name: notify
SELECT pg_notify('sophia_inbox', %(name)s)

-- name: dead_letter
INSERT INTO sophia.dead_letters AS d (collection_id, key, version_id, stage, reason, clock)
SELECT id, %(key)s, %(version_id)s, %(stage)s, %(reason)s, %(clock)s FROM sophia.collections WHERE name = %(collection)s
ON CONFLICT (COALESCE(collection_id, 0), COALESCE(key, ''), COALESCE(version_id, 0), stage) DO UPDATE
SET reason = EXCLUDED.reason, clock = EXCLUDED.clock, attempts = d.attempts + 1, last_seen = now()

-- name: resolve_dead_letters
DELETE FROM sophia.dead_letters
WHERE collection_id = %(collection_id)s AND key = ANY(%(keys)s) AND version_id IS NOT DISTINCT FROM %(version_id)s

-- name: ensure_collection
INSERT INTO sophia.collections (name, key_fields) VALUES (%(name)s, %(key_fields)s)
ON CONFLICT (name) DO UPDATE SET key_fields =
    CASE WHEN EXCLUDED.key_fields = '{}' THEN sophia.collections.key_fields ELSE EXCLUDED.key_fields END
RETURNING id

-- name: resolve_taken
DELETE FROM sophia.dead_letters d USING sophia.collections c
WHERE c.id = d.collection_id AND c.name = %(collection)s AND d.key = ANY(%(keys)s) AND d.version_id IS NULL

-- name: incomplete
SELECT d.key FROM sophia.documents d JOIN sophia.collections c ON c.id = d.collection_id
WHERE c.name = %(name)s AND d.missing <> '{}' LIMIT %(limit)s

-- name: request_reread
-- The capture reads what lacks anything; '*' says that the whole row is wanted.
UPDATE sophia.documents d SET missing = '{*}'
FROM sophia.dead_letters x JOIN sophia.collections c ON c.id = x.collection_id
WHERE d.collection_id = x.collection_id AND d.key = x.key AND NOT d.deleted
  AND (%(collection)s::text IS NULL OR c.name = %(collection)s)
