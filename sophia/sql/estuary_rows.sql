-- name: key_types
-- The types of a source table's columns, as names to cast to.
SELECT a.attname::text, n.nspname::text, t.typname::text
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped

-- name: collection
SELECT id, key_fields, generation FROM sophia.collections WHERE name = %(name)s

-- name: requested
-- Rows that a delivery asks for, the oldest first; with the clock of the request, and with that of the newest delivery.
-- One that could not be read, and of which nothing came since, comes behind all others, and not before its pause is
-- over, which doubles each time.
SELECT r.key, r.clock, GREATEST(r.clock, d.clock)
FROM sophia.rereads r
LEFT JOIN sophia.documents d ON d.collection_id = r.collection_id AND d.key = r.key
LEFT JOIN sophia.dead_letters x ON COALESCE(x.collection_id, 0) = r.collection_id AND COALESCE(x.key, '') = r.key
    AND COALESCE(x.version_id, 0) = 0 AND x.stage = 'inbox' AND x.clock >= GREATEST(r.clock, d.clock)
WHERE r.collection_id = %(collection_id)s AND (x.id IS NULL OR x.last_seen < now() - make_interval(
    secs => LEAST(%(longest_pause)s, %(first_pause)s * 2 ^ LEAST(x.attempts - 1, 20))))
ORDER BY x.last_seen NULLS FIRST, r.requested_at, r.key LIMIT %(limit)s

-- name: answered
-- Unless another delivery has asked again meanwhile, or come in between: of a document that was not the newest any more
-- nothing was taken. Nothing can be taken either of a key that has no document, since it was erased or cannot be
-- stored, or below the collection's floor.
DELETE FROM sophia.rereads r
USING sophia.collections c,
      unnest(%(keys)s::text[], %(clocks)s::text[], %(written)s::text[]) AS u (key, clock, written)
WHERE r.collection_id = %(collection_id)s AND c.id = r.collection_id AND r.key = u.key AND r.clock = u.clock::bigint[]
  AND (u.written::bigint[] < c.floor OR NOT EXISTS (
      SELECT FROM sophia.documents d
      WHERE d.collection_id = r.collection_id AND d.key = r.key AND d.clock <> u.written::bigint[]))

-- name: incomplete
-- Documents that lack columns, with their clocks; not those below the floor, of which nothing counts any more. Those
-- that could not be read are as in `requested`.
SELECT d.key, d.clock
FROM sophia.documents d
JOIN sophia.collections c ON c.id = d.collection_id
LEFT JOIN sophia.dead_letters x ON COALESCE(x.collection_id, 0) = d.collection_id AND COALESCE(x.key, '') = d.key
    AND COALESCE(x.version_id, 0) = 0 AND x.stage = 'inbox' AND x.clock >= d.clock
WHERE d.collection_id = %(collection_id)s AND d.missing <> '{}' AND d.clock >= c.floor
  AND (x.id IS NULL OR x.last_seen < now() - make_interval(
    secs => LEAST(%(longest_pause)s, %(first_pause)s * 2 ^ LEAST(x.attempts - 1, 20))))
ORDER BY x.last_seen NULLS FIRST, d.key LIMIT %(limit)s

-- name: suspects
-- Live documents that no delivery since `before` has touched, in the order of their keys.
SELECT key, clock, body FROM sophia.documents
WHERE collection_id = %(collection_id)s AND NOT deleted AND clock < %(before)s::bigint[] AND key > %(after)s
ORDER BY key LIMIT %(limit)s

-- name: count_suspects
SELECT count(*) FROM sophia.documents
WHERE collection_id = %(collection_id)s AND NOT deleted AND clock < %(before)s::bigint[]
