-- name: applied
-- Chunks that the ledger vouches for, by key.
SELECT key, cardinality(content_hashes) FROM sophia.ledger
WHERE version_id = %(version_id)s AND key = ANY(%(keys)s) AND state = 'applied' AND NOT deleted

-- name: held
-- Chunks that a store outside of the database may hold, by key, whatever became of the last write.
SELECT key, GREATEST(held, cardinality(content_hashes)) FROM sophia.ledger
WHERE version_id = %(version_id)s AND key = ANY(%(keys)s)

-- name: hashes
SELECT key, content_hashes, vector_hashes FROM sophia.ledger
WHERE version_id = %(version_id)s AND key = ANY(%(keys)s) AND NOT deleted

-- name: sample
-- Keys next to random buckets, which are hashes: an even choice that costs a look-up each. Of the keys of one bucket
-- the seed chooses.
SELECT DISTINCT ON (t.key) t.key, t.chunks, t.mark
FROM unnest(%(buckets)s::int[]) AS u (bucket)
CROSS JOIN LATERAL (
    SELECT key, cardinality(content_hashes) AS chunks, md5(key || %(seed)s) AS mark FROM sophia.ledger
    WHERE version_id = %(version_id)s AND bucket >= u.bucket AND state = 'applied' AND NOT deleted
      AND cardinality(content_hashes) > 0
    ORDER BY bucket, mark LIMIT 1) t
ORDER BY t.key
