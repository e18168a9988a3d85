-- name: compared
-- What the ledger says of the keys of a scope beside their current documents. `settled` is false while a lane has
-- still to take the document: a live one up to the version's position, all others when their shard is compared. What
-- the index must hold as metadata is in the body, in the text that jsonb prints.
SELECT COALESCE(l.key, d.key), l.state, l.deleted, l.content_hashes, l.vector_hashes, l.clock, d.clock, d.deleted,
       COALESCE((SELECT jsonb_object_agg(f, COALESCE(d.body -> f, 'null'))
                 FROM unnest(%(fields)s::text[]) f), '{{}}')::text,
       d.position <= CASE WHEN d.bulk OR s.position < 0 THEN s.position ELSE v.position END, l.updated_at
FROM (SELECT * FROM sophia.ledger WHERE version_id = %(version_id)s AND {scope}) l
FULL JOIN (SELECT * FROM sophia.documents WHERE collection_id = %(collection_id)s AND {scope}) d ON d.key = l.key
JOIN sophia.index_versions v ON v.id = %(version_id)s
LEFT JOIN sophia.shards s ON s.version_id = %(version_id)s
                         AND s.shard = COALESCE(d.bucket, l.bucket) / %(buckets_per_shard)s::int
WHERE l.key IS NOT NULL OR NOT d.deleted

-- name: in_buckets
bucket BETWEEN %(first)s AND %(last)s

-- name: in_keys
key = ANY(%(keys)s)

-- name: sample_keys
SELECT l.key FROM sophia.ledger l
JOIN sophia.documents d ON d.collection_id = %(collection_id)s AND d.key = l.key
WHERE l.version_id = %(version_id)s AND NOT l.deleted AND l.state = 'applied' AND cardinality(l.content_hashes) > 0
  AND d.bucket BETWEEN %(first)s AND %(last)s
ORDER BY md5(l.key || %(seed)s) LIMIT %(limit)s
