-- name: lock_collections
-- Serialises the writers of a collection until commit; positions are handed out under this lock. Locked by name, so
-- that two writers of several collections wait for each other in the same order.
SELECT name, id, generation, floor, erasures, key_fields
FROM sophia.collections WHERE name = ANY(%(names)s) ORDER BY name FOR UPDATE

-- name: bases
-- What partial documents are merged into: the current documents of these keys.
SELECT key, clock, deleted, body::text, missing FROM sophia.documents
WHERE collection_id = %(collection_id)s AND key = ANY(%(keys)s)

-- name: erased
-- Which of these keys were erased, and up to which clock their deliveries are void.
SELECT key_hash, clock FROM sophia.erasures
WHERE collection_id = %(collection_id)s AND key_hash = ANY(%(hashes)s)

-- name: take
-- One batch: the documents (one row a key), the log, the collection's position. A row older than or equal to what is
-- stored changes nothing. Deletes clear the body. With `merge` the documents are partial and merged into what is stored,
-- top level only; with `raw` they hold `_meta`, which is not stored. Yields how many documents changed, and wakes readers
-- if any did.
WITH written AS (
    INSERT INTO sophia.documents AS d (collection_id, key, bucket, position, clock, deleted, bulk, missing, body,
                                       lsn, txid, committed_at)
    SELECT c.id, u.key, u.bucket, c.position + u.ordinality, u.clock::bigint[], u.deleted, u.bulk,
           u.missing::text[], CASE WHEN %(raw)s THEN u.body::jsonb - '_meta' ELSE u.body::jsonb END, u.lsn::pg_lsn, u.txid, u.committed_at
    FROM sophia.collections c,
         unnest(%(keys)s::text[], %(buckets)s::int[], %(clocks)s::text[], %(deleted)s::bool[], %(bulk)s::bool[],
                %(missing)s::text[], %(bodies)s::text[], %(lsns)s::text[], %(txids)s::bigint[],
                %(times)s::timestamptz[])
         WITH ORDINALITY AS u (key, bucket, clock, deleted, bulk, missing, body, lsn, txid, committed_at, ordinality)
    WHERE c.id = %(collection_id)s
    ON CONFLICT (collection_id, key) DO UPDATE
    SET position = EXCLUDED.position, clock = EXCLUDED.clock, deleted = EXCLUDED.deleted, bulk = EXCLUDED.bulk,
        missing = CASE WHEN %(merge)s AND NOT d.deleted
                       THEN ARRAY(SELECT m FROM unnest(d.missing) AS m WHERE m = '*' OR NOT EXCLUDED.body ? m)
                       ELSE EXCLUDED.missing END,
        body = CASE WHEN %(merge)s AND NOT d.deleted THEN d.body || EXCLUDED.body ELSE EXCLUDED.body END,
        lsn = EXCLUDED.lsn, txid = EXCLUDED.txid,
        committed_at = EXCLUDED.committed_at, received_at = clock_timestamp()
    WHERE d.clock < EXCLUDED.clock
    RETURNING 1
), logged AS (
    INSERT INTO sophia.inbox (collection_id, key, op, clock, lsn, txid, committed_at)
    SELECT %(collection_id)s, l.key, l.op::"char", l.clock::bigint[], l.lsn::pg_lsn, l.txid, l.committed_at
    FROM unnest(%(log_keys)s::text[], %(log_ops)s::text[], %(log_clocks)s::text[], %(log_lsns)s::text[],
                %(log_txids)s::bigint[], %(log_times)s::timestamptz[])
         AS l (key, op, clock, lsn, txid, committed_at)
), advanced AS (
    UPDATE sophia.collections
    SET position = position + %(count)s,
        bulk_position = CASE WHEN %(any_bulk)s THEN position + %(count)s ELSE bulk_position END,
        source_lsn = GREATEST(source_lsn, %(newest_lsn)s::pg_lsn),
        source_time = GREATEST(source_time, %(newest_time)s::timestamptz)
    WHERE id = %(collection_id)s
)
SELECT count(*), CASE WHEN count(*) > 0 THEN pg_notify('sophia_inbox', %(name)s) END FROM written

-- name: raise_floor
-- TRUNCATE and new generations: what is older than the floor is void from now on.
UPDATE sophia.collections
SET floor = GREATEST(floor, %(floor)s::bigint[]), generation = GREATEST(generation, %(generation)s)
WHERE id = %(collection_id)s

-- name: sweep
-- Turn every document older than the floor into a tombstone that bears the floor's clock; more than `bulk_above` of
-- them take the bulk lane. Yields how many there were, and wakes readers if any.
WITH doomed AS (
    SELECT key, row_number() OVER () AS n FROM sophia.documents
    WHERE collection_id = %(collection_id)s AND NOT deleted AND clock < %(floor)s::bigint[]
), lane AS (
    SELECT count(*) AS n, count(*) > GREATEST(%(bulk_above)s, 0) AS bulk FROM doomed
), swept AS (
    UPDATE sophia.documents d
    SET deleted = true, body = NULL, missing = '{}', clock = %(floor)s::bigint[], bulk = lane.bulk,
        position = c.position + doomed.n, lsn = %(lsn)s::pg_lsn, txid = NULL, committed_at = %(time)s::timestamptz,
        received_at = clock_timestamp()
    FROM doomed, lane, sophia.collections c
    WHERE d.collection_id = %(collection_id)s AND d.key = doomed.key AND c.id = %(collection_id)s
), advanced AS (
    UPDATE sophia.collections
    SET floor = GREATEST(floor, %(floor)s::bigint[]), generation = GREATEST(generation, %(generation)s),
        position = position + lane.n,
        bulk_position = CASE WHEN lane.bulk THEN position + lane.n ELSE bulk_position END,
        source_lsn = GREATEST(source_lsn, %(lsn)s::pg_lsn),
        source_time = GREATEST(source_time, %(time)s::timestamptz)
    FROM lane WHERE id = %(collection_id)s
)
SELECT n, CASE WHEN n > 0 THEN pg_notify('sophia_inbox', %(name)s) END FROM lane

-- name: dead_letter
-- A fault of a document that a newer one has replaced is none any more.
INSERT INTO sophia.dead_letters AS d (collection_id, key, version_id, stage, reason, clock)
SELECT c.id, %(key)s, %(version_id)s, %(stage)s, %(reason)s, %(clock)s::bigint[] FROM sophia.collections c
WHERE c.name = %(collection)s AND NOT EXISTS (
    SELECT FROM sophia.documents n WHERE n.collection_id = c.id AND n.key = %(key)s AND n.clock > %(clock)s::bigint[])
ON CONFLICT (COALESCE(collection_id, 0), COALESCE(key, ''), COALESCE(version_id, 0), stage) DO UPDATE
SET reason = EXCLUDED.reason, clock = EXCLUDED.clock, attempts = d.attempts + 1, last_seen = now()
WHERE d.clock IS NULL OR EXCLUDED.clock IS NULL OR d.clock <= EXCLUDED.clock

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
  AND (d.clock IS NULL OR d.clock <= %(clock)s::bigint[])

-- name: resolve_outgrown
-- Faults of documents that a newer one, taken whole, has replaced since.
DELETE FROM sophia.dead_letters x USING sophia.documents d, sophia.collections c
WHERE c.name = %(collection)s AND x.collection_id = c.id AND d.collection_id = c.id AND d.key = x.key
  AND x.version_id IS NULL AND d.missing = '{}' AND d.clock > x.clock

-- name: resolve_table
-- What was said of a table as a whole, once it was copied.
DELETE FROM sophia.dead_letters d USING sophia.collections c
WHERE c.id = d.collection_id AND c.name = %(collection)s AND d.key IS NULL AND d.version_id IS NULL
  AND d.stage = 'capture' AND (d.clock IS NULL OR d.clock < %(clock)s::bigint[])

-- name: incomplete
SELECT d.key FROM sophia.documents d JOIN sophia.collections c ON c.id = d.collection_id
WHERE c.name = %(name)s AND d.missing <> '{}' LIMIT %(limit)s

-- name: request_reread
-- The capture reads what lacks anything; '*' says that the whole row is wanted. One that could not be read is tried
-- again as if it were the first time.
WITH forgotten AS (
    UPDATE sophia.dead_letters x SET attempts = 0 FROM sophia.collections c
    WHERE c.id = x.collection_id AND x.stage = 'inbox' AND (%(collection)s::text IS NULL OR c.name = %(collection)s)
)
UPDATE sophia.documents d SET missing = '{*}'
FROM sophia.dead_letters x JOIN sophia.collections c ON c.id = x.collection_id
WHERE d.collection_id = x.collection_id AND d.key = x.key AND NOT d.deleted
  AND (%(collection)s::text IS NULL OR c.name = %(collection)s)
