-- name: lock_shards
-- Wait in line, shard by shard in their order. Held by the session, so that it lasts from one transaction to the next.
SELECT count(pg_advisory_lock(hashtextextended('sophia.shard:' || name, 0))) FROM unnest(%(names)s::text[]) name

-- name: unlock_shards
SELECT count(pg_advisory_unlock(hashtextextended('sophia.shard:' || name, 0))) FROM unnest(%(names)s::text[]) name

-- name: take_shards
-- A shard is free when it was given back, or its time is over. A holder whose session has ended holds it all the same:
-- what it has sent to the store may still be under way.
INSERT INTO sophia.leases AS l (name, epoch, holder, backend, started, expires_at)
SELECT n.name, 1, %(holder)s, pg_backend_pid(), clock_timestamp(),
       clock_timestamp() + make_interval(secs => %(seconds)s)
FROM unnest(%(names)s::text[]) n (name)
ON CONFLICT (name) DO UPDATE
SET epoch = l.epoch + 1, holder = EXCLUDED.holder, backend = EXCLUDED.backend, started = EXCLUDED.started,
    expires_at = EXCLUDED.expires_at
WHERE l.expires_at < clock_timestamp()
RETURNING name, epoch

-- name: shards_left
-- Seconds until the last of these shards is free.
SELECT COALESCE(max(EXTRACT(epoch FROM expires_at - clock_timestamp())), 0)::float8
FROM sophia.leases WHERE name = ANY(%(names)s) AND expires_at > clock_timestamp()

-- name: give_shards
-- Only what is still ours: the epoch moved on under whoever was silent for too long.
UPDATE sophia.leases l SET expires_at = '-infinity', backend = 0
FROM unnest(%(names)s::text[], %(epochs)s::bigint[]) u (name, epoch)
WHERE l.name = u.name AND l.epoch = u.epoch

-- name: begin
-- Takes a key for a newer clock; for the same one only to repair it, or where a writer did not say that it is done.
INSERT INTO sophia.ledger AS l (version_id, key, bucket, clock, state, deleted, content_hashes, vector_hashes, run, held)
SELECT %(version_id)s, u.key, u.bucket, u.clock::bigint[], 'pending', u.deleted, u.content_hashes::bytea[],
       u.vector_hashes::bytea[], %(run)s, cardinality(u.content_hashes::bytea[])
FROM unnest(%(keys)b::text[], %(buckets)s::int[], %(clocks)b::text[], %(deleted)s::bool[],
            %(content_hashes)b::text[], %(vector_hashes)b::text[])
     AS u (key, bucket, clock, deleted, content_hashes, vector_hashes)
ON CONFLICT (version_id, key) DO UPDATE
SET clock = EXCLUDED.clock, state = EXCLUDED.state, deleted = EXCLUDED.deleted, run = EXCLUDED.run,
    content_hashes = EXCLUDED.content_hashes, vector_hashes = EXCLUDED.vector_hashes,
    held = GREATEST(l.held, EXCLUDED.held), updated_at = clock_timestamp()
WHERE l.clock < EXCLUDED.clock OR (l.clock = EXCLUDED.clock AND (%(repair)s OR l.state = 'pending'))
RETURNING key, held

-- name: ledger_states
-- Locked, so that what is compared here is what the following write meets.
SELECT key, clock, state FROM sophia.ledger
WHERE version_id = %(version_id)s AND key = ANY(%(keys)s) ORDER BY key FOR UPDATE

-- name: end
-- What was begun is in the store now, or nothing of it where the document is parked.
UPDATE sophia.ledger l
SET state = u.state, held = u.held, updated_at = clock_timestamp(),
    content_hashes = CASE u.state WHEN 'parked' THEN '{}' ELSE l.content_hashes END,
    vector_hashes = CASE u.state WHEN 'parked' THEN '{}' ELSE l.vector_hashes END
FROM unnest(%(keys)b::text[], %(clocks)b::text[], %(states)b::text[], %(helds)s::int[]) u (key, clock, state, held)
WHERE l.version_id = %(version_id)s AND l.key = u.key AND l.clock = u.clock::bigint[] AND l.state = 'pending'

-- name: begin_discard
-- Entries of keys that have no document any more.
UPDATE sophia.ledger l
SET deleted = true, state = 'pending', held = GREATEST(held, cardinality(content_hashes)), content_hashes = '{}',
    vector_hashes = '{}', updated_at = clock_timestamp()
WHERE l.version_id = %(version_id)s AND l.key = ANY(%(keys)s) AND (NOT l.deleted OR l.state = 'pending')
  AND NOT EXISTS (SELECT 1 FROM sophia.documents d WHERE d.collection_id = %(collection_id)s AND d.key = l.key)

-- name: end_discard
UPDATE sophia.ledger SET state = 'applied', held = 0, updated_at = clock_timestamp()
WHERE version_id = %(version_id)s AND key = ANY(%(keys)s) AND deleted AND state = 'pending'

-- name: left_pending
-- Keys that a writer began and did not end, for so long that it must be gone.
SELECT key FROM sophia.ledger
WHERE version_id = %(version_id)s AND state = 'pending'
  AND updated_at < clock_timestamp() - make_interval(secs => %(seconds)s)
LIMIT %(limit)s

-- name: marks
-- What changes with every write of a key.
SELECT key, updated_at FROM sophia.ledger WHERE version_id = %(version_id)s AND key = ANY(%(keys)s)
