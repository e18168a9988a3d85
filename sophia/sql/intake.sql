-- name: park
-- What was parked before gets another attempt and the present reason.
INSERT INTO sophia.parked AS p (collection_id, name, key, clock, documents, digest, reason, body)
VALUES (%(collection_id)s, %(name)s, %(key)s, %(clock)s::bigint[], %(documents)s, %(digest)s, %(reason)s, %(body)b)
ON CONFLICT (name, digest) DO UPDATE
SET attempts = p.attempts + 1, reason = EXCLUDED.reason, key = EXCLUDED.key, clock = EXCLUDED.clock, last_seen = now()

-- name: want_reread
-- Rows to be read from their source again; of several requests for a key the one of the highest clock stays.
INSERT INTO sophia.rereads AS r (collection_id, key, clock, reason)
SELECT %(collection_id)s, w.key, w.clock::bigint[], w.reason
FROM unnest(%(keys)s::text[], %(clocks)s::text[], %(reasons)s::text[]) AS w (key, clock, reason)
ON CONFLICT (collection_id, key) DO UPDATE
SET clock = EXCLUDED.clock, reason = EXCLUDED.reason, requested_at = now()
WHERE r.clock < EXCLUDED.clock

-- name: outgrown
-- How many of these deliveries are older than what is stored of their keys.
SELECT count(*) FROM unnest(%(keys)s::text[], %(clocks)s::text[]) AS u (key, clock)
JOIN sophia.documents d ON d.collection_id = %(collection_id)s AND d.key = u.key AND d.clock > u.clock::bigint[]

-- name: readable
-- Fails if the database cannot hold one of these documents.
SELECT count(b::jsonb - '_meta') FROM unnest(%(bodies)s::text[]) AS b

-- name: forget_keys
-- What is still to be done about rows of a collection whose keys are no keys any more.
WITH rereads AS (
    DELETE FROM sophia.rereads WHERE collection_id = %(collection_id)s
)
DELETE FROM sophia.dead_letters WHERE collection_id = %(collection_id)s AND version_id IS NULL AND key IS NOT NULL

-- name: count_documents
SELECT count(*) FROM sophia.documents WHERE collection_id = %(collection_id)s AND NOT deleted

-- name: parked_ids
SELECT id FROM sophia.parked ORDER BY id

-- name: parked
SELECT name, documents, digest, body FROM sophia.parked WHERE id = %(id)s

-- name: unpark
DELETE FROM sophia.parked WHERE id = %(id)s

-- name: commit_event
INSERT INTO sophia.estuary_commits (materialization, collections, published_at_min, published_at_max, digest)
VALUES (%(materialization)s, %(collections)s, %(published_at_min)s, %(published_at_max)s,
        sha256(convert_to(%(collections)s::text[]::text, 'UTF8')))
ON CONFLICT DO NOTHING

-- name: raise_watermarks
INSERT INTO sophia.estuary_watermarks AS w (collection, published_at_max)
SELECT DISTINCT name, %(published_at_max)s::timestamptz FROM unnest(%(collections)s::text[]) AS name
ON CONFLICT (collection) DO UPDATE SET published_at_max = EXCLUDED.published_at_max, updated_at = now()
WHERE w.published_at_max < EXCLUDED.published_at_max

-- name: watermarks
SELECT collection, published_at_max FROM sophia.estuary_watermarks WHERE collection = ANY(%(names)s)
