-- name: take_lease
-- Free if nobody holds it, the holder's database session is gone, or it was silent for too long.
INSERT INTO sophia.leases AS l (name, epoch, holder, backend, started, expires_at)
SELECT %(name)s, 1, %(holder)s, pg_backend_pid(), a.backend_start, clock_timestamp() + make_interval(secs => %(seconds)s)
FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()
ON CONFLICT (name) DO UPDATE
SET epoch = l.epoch + 1, holder = EXCLUDED.holder, backend = EXCLUDED.backend, started = EXCLUDED.started,
    expires_at = EXCLUDED.expires_at
WHERE l.expires_at < clock_timestamp()
   OR (l.backend = EXCLUDED.backend AND l.started = EXCLUDED.started)
   OR NOT EXISTS (SELECT 1 FROM pg_stat_activity a WHERE a.pid = l.backend AND a.backend_start = l.started)
RETURNING epoch

-- name: check_lease
-- In the transaction that writes: the row lock makes a successor wait for this transaction, or this one see it.
SELECT 1 FROM sophia.leases WHERE name = %(name)s AND epoch = %(epoch)s FOR SHARE

-- name: renew_lease
UPDATE sophia.leases SET expires_at = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE name = %(name)s AND epoch = %(epoch)s

-- name: release_lease
-- The row stays: were an epoch to come again, a former holder that slept meanwhile would pass for the present one.
UPDATE sophia.leases SET expires_at = '-infinity', backend = 0 WHERE name = %(name)s AND epoch = %(epoch)s

-- name: heads
-- How far every collection is, so that nobody looks for documents where nothing is new.
SELECT id, position, GREATEST(bulk_position, 0) FROM sophia.collections

-- name: live
-- What the live lane has not taken yet, oldest first, with what the ledger holds of it. Looked up key by key: OFFSET
-- keeps the planner from joining otherwise, and a key's bucket makes either index lead there. With statistics from when
-- the ledger was empty it would go through all of it for every document.
SELECT d.key, d.bucket, d.position, d.clock, d.deleted, d.missing, d.body, d.lsn::text, d.txid, d.committed_at,
       l.clock, l.deleted, l.content_hashes, l.vector_hashes, l.state
FROM sophia.documents d
LEFT JOIN LATERAL (
    SELECT * FROM sophia.ledger l
    WHERE l.version_id = %(version_id)s AND l.key = d.key AND l.bucket = d.bucket OFFSET 0
) l ON true
WHERE d.collection_id = %(collection_id)s AND NOT d.bulk AND d.position > %(position)s
ORDER BY d.position LIMIT %(limit)s

-- name: outdated
-- Documents of a range of buckets that the ledger does not have, has at an older clock, or has as begun and not as done
-- (in a store outside of the database), in order of the buckets. A key that was deleted before it was ever indexed needs no entry.
SELECT d.key, d.bucket, d.position, d.clock, d.deleted, d.missing, d.body, d.lsn::text, d.txid, d.committed_at,
       l.clock, l.deleted, l.content_hashes, l.vector_hashes, l.state
FROM sophia.documents d
LEFT JOIN sophia.ledger l ON l.version_id = %(version_id)s AND l.key = d.key
WHERE d.collection_id = %(collection_id)s AND d.bucket BETWEEN %(first)s AND %(last)s
  AND ((l.key IS NULL AND NOT d.deleted) OR l.clock < d.clock OR (l.state = 'pending' AND l.clock = d.clock))
ORDER BY d.bucket LIMIT %(limit)s

-- name: count_outdated
-- How many of these there are in the first buckets of some shards.
SELECT count(*) FROM unnest(%(firsts)s::int[]) s (first)
JOIN sophia.documents d ON d.collection_id = %(collection_id)s AND d.bucket BETWEEN s.first AND s.first + %(width)s - 1
LEFT JOIN sophia.ledger l ON l.version_id = %(version_id)s AND l.key = d.key
WHERE (l.key IS NULL AND NOT d.deleted) OR l.clock < d.clock OR (l.state = 'pending' AND l.clock = d.clock)

-- name: by_keys
-- Looked up as in `live`.
SELECT d.key, d.bucket, d.position, d.clock, d.deleted, d.missing, d.body, d.lsn::text, d.txid, d.committed_at,
       l.clock, l.deleted, l.content_hashes, l.vector_hashes, l.state
FROM sophia.documents d
LEFT JOIN LATERAL (
    SELECT * FROM sophia.ledger l
    WHERE l.version_id = %(version_id)s AND l.key = d.key AND l.bucket = d.bucket OFFSET 0
) l ON true
WHERE d.collection_id = %(collection_id)s AND d.key = ANY(%(keys)s)

-- name: ledger_clocks
-- Locked, so that what is compared here is what the following write meets.
SELECT key, clock FROM sophia.ledger WHERE version_id = %(version_id)s AND key = ANY(%(keys)s) ORDER BY key FOR UPDATE

-- name: one_plan
-- The prepared statements of this transaction are planned once, for any values. To plan them for these costs as much as
-- to execute them, and comes to the same. Who asks for this lets go of such plans before the tables have outgrown them.
SELECT set_config('plan_cache_mode', 'force_generic_plan', true)

-- name: forget_plans
DISCARD PLANS

-- name: ledger
-- Takes a key only for a newer clock, or (repair) for the very same one.
INSERT INTO sophia.ledger AS l (version_id, key, bucket, clock, state, deleted, content_hashes, vector_hashes, run)
SELECT %(version_id)s, u.key, u.bucket, u.clock::bigint[], u.state, u.deleted, u.content_hashes::bytea[],
       u.vector_hashes::bytea[], %(run)s
FROM unnest(%(keys)b::text[], %(buckets)s::int[], %(clocks)b::text[], %(states)b::text[], %(deleted)s::bool[],
            %(content_hashes)b::text[], %(vector_hashes)b::text[])
     AS u (key, bucket, clock, state, deleted, content_hashes, vector_hashes)
ON CONFLICT (version_id, key) DO UPDATE
SET clock = EXCLUDED.clock, state = EXCLUDED.state, deleted = EXCLUDED.deleted, run = EXCLUDED.run,
    content_hashes = EXCLUDED.content_hashes, vector_hashes = EXCLUDED.vector_hashes, updated_at = clock_timestamp()
WHERE l.clock < EXCLUDED.clock OR (%(repair)s AND l.clock = EXCLUDED.clock)

-- name: advance
UPDATE sophia.index_versions SET position = GREATEST(position, %(position)s) WHERE id = %(version_id)s

-- name: batch
-- Notes a batch and tells the feed. now() is when its transaction began, after what took the client `prepared_ms`. NOTIFY carries at most 8,000 bytes, so long keys are left out of it.
WITH noted AS (
    INSERT INTO sophia.batches (version_id, lane, run, documents, embedded, reused, deleted, tokens, embed_ms, apply_ms,
                                lag_ms, keys)
    VALUES (%(version_id)s, %(lane)s, %(run)s, %(documents)s, %(embedded)s, %(reused)s, %(deleted)s, %(tokens)s,
            %(embed_ms)s, %(prepared_ms)s + EXTRACT(epoch FROM clock_timestamp() - now()) * 1000, EXTRACT(epoch FROM clock_timestamp() - %(oldest)s::timestamptz) * 1000,
            %(keys)s)
    RETURNING id, lag_ms, keys
)
SELECT lag_ms, pg_notify('sophia_indexed', json_build_object(
    'batch', id, 'index', %(index)s::text, 'version', %(version)s::int, 'lane', %(lane)s::text,
    'documents', %(documents)s::int, 'embedded', %(embedded)s::int, 'deleted', %(deleted)s::int,
    'lag_ms', round(lag_ms::numeric, 1),
    'keys', ARRAY(SELECT k FROM unnest(keys) k WHERE octet_length(k) < 200))::text)
FROM noted

-- name: stale_shards
-- Shards that were not compared since the newest bulk document came in.
SELECT s.shard FROM sophia.shards s
JOIN sophia.index_versions v ON v.id = s.version_id
JOIN sophia.collections c ON c.id = v.collection_id
WHERE s.version_id = %(version_id)s AND s.position < GREATEST(c.bulk_position, 0) ORDER BY s.shard

-- name: collection_position
SELECT position FROM sophia.collections WHERE id = %(collection_id)s

-- name: shards_done
UPDATE sophia.shards SET position = GREATEST(position, %(position)s), checked_at = clock_timestamp()
WHERE version_id = %(version_id)s AND shard BETWEEN %(first)s AND %(last)s

-- name: shards_pending
SELECT count(*) FROM sophia.shards WHERE version_id = %(version_id)s AND position < 0

-- name: orphaned
-- Live entries of keys that have no document any more.
UPDATE sophia.ledger l SET deleted = true, content_hashes = '{}', vector_hashes = '{}', updated_at = clock_timestamp()
WHERE l.version_id = %(version_id)s AND l.key = ANY(%(keys)s) AND NOT l.deleted
  AND NOT EXISTS (SELECT 1 FROM sophia.documents d WHERE d.collection_id = %(collection_id)s AND d.key = l.key)
