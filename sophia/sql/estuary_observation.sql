-- name: movements
SELECT task, collection, docs, written, moved_at, waiting_since, observed_at FROM sophia.estuary_movements
WHERE collection = ANY(%(collections)s)

-- name: note_movements
-- Of two looks at once the later one stays.
INSERT INTO sophia.estuary_movements AS m (task, collection, docs, written, moved_at, waiting_since, observed_at)
SELECT * FROM unnest(%(tasks)s::text[], %(collections)s::text[], %(docs)s::float8[], %(written)s::float8[],
                     %(moved)s::timestamptz[], %(waiting)s::timestamptz[], %(observed)s::timestamptz[])
ON CONFLICT (task, collection) DO UPDATE
SET docs = EXCLUDED.docs, written = EXCLUDED.written, moved_at = EXCLUDED.moved_at,
    waiting_since = EXCLUDED.waiting_since, observed_at = EXCLUDED.observed_at
WHERE m.observed_at < EXCLUDED.observed_at

-- name: positions
-- Our own side of these collections: how far the inbox is, and Estuary's watermark; the names of both lists belong
-- together in pairs.
SELECT n.name, c.id, COALESCE(c.generation, 1) AS generation, COALESCE(c.position, 0) AS position, c.source_time,
       w.published_at_max AS watermark
FROM unnest(%(names)s::text[], %(estuary)s::text[]) AS n (name, estuary)
LEFT JOIN sophia.collections c ON c.name = n.name
LEFT JOIN sophia.estuary_watermarks w ON w.collection = n.estuary

-- name: columns
-- Columns of some documents with the JSON types of their values: the newest, and a few from anywhere, since a backfill
-- has no newest ones. Documents that lack columns say nothing; huge ones are not unpacked.
WITH sample AS (
    (SELECT body FROM sophia.documents
     WHERE collection_id = %(collection_id)s AND NOT bulk AND NOT deleted AND missing = '{}'
       AND pg_column_size(body) < 100000
     ORDER BY position DESC LIMIT %(limit)s)
    UNION ALL
    (SELECT body FROM sophia.documents
     WHERE collection_id = %(collection_id)s AND NOT deleted AND missing = '{}'
       AND pg_column_size(body) < 100000
     ORDER BY bucket LIMIT %(limit)s)
)
SELECT f.key, array_agg(DISTINCT jsonb_typeof(f.value))
FROM sample CROSS JOIN LATERAL jsonb_each(sample.body) AS f (key, value)
WHERE f.key <> '_meta' GROUP BY f.key ORDER BY f.key LIMIT %(columns)s
