-- name: state
SELECT t.complete, t.shape, t.rows, t.last_key, c.generation, s.cursor_value, s.compared_at, s.stream, s.seq, s.off
FROM sophia.captured_tables t
JOIN sophia.collections c ON c.id = t.collection_id
LEFT JOIN sophia.snowflake_tables s ON s.source = t.source AND s.collection_id = t.collection_id
WHERE t.source = %(source)s AND c.name = %(collection)s

-- name: begin
INSERT INTO sophia.snowflake_tables (source, collection_id, stream)
SELECT %(source)s, id, %(stream)s FROM sophia.collections WHERE name = %(collection)s
ON CONFLICT (source, collection_id) DO UPDATE
SET cursor_value = NULL, compared_at = NULL, stream = EXCLUDED.stream, seq = 0, off = -1

-- name: cursor_read
UPDATE sophia.snowflake_tables s SET cursor_value = COALESCE(%(value)s, s.cursor_value) FROM sophia.collections c
WHERE c.id = s.collection_id AND s.source = %(source)s AND c.name = %(collection)s

-- name: staged_read
UPDATE sophia.snowflake_tables s SET seq = %(seq)s, off = %(off)s FROM sophia.collections c
WHERE c.id = s.collection_id AND s.source = %(source)s AND c.name = %(collection)s

-- name: compared
UPDATE sophia.snowflake_tables s SET compared_at = now() FROM sophia.collections c
WHERE c.id = s.collection_id AND s.source = %(source)s AND c.name = %(collection)s

-- name: up_to_date
-- Everything that the source had committed at this time is in the inbox.
UPDATE sophia.collections SET source_time = GREATEST(source_time, %(time)s) WHERE name = %(collection)s

-- name: observed
-- What is stored of rows that were just read: clock, whether deleted, what is missing, whether the content is the same.
SELECT d.key, d.clock, d.deleted, d.missing, COALESCE(d.body = n.body::jsonb, false)
FROM unnest(%(keys)s::text[], %(bodies)s::text[]) AS n (key, body)
JOIN sophia.documents d ON d.collection_id = %(collection_id)s AND d.key = n.key

-- name: make_seen
CREATE TEMPORARY TABLE IF NOT EXISTS sophia_seen (key text NOT NULL)

-- name: clear_seen
TRUNCATE sophia_seen

-- name: copy_seen
COPY sophia_seen (key) FROM STDIN

-- name: index_seen
CREATE INDEX IF NOT EXISTS sophia_seen_key ON sophia_seen (key)

-- name: drop_seen_index
DROP INDEX IF EXISTS pg_temp.sophia_seen_key

-- name: analyze_seen
ANALYZE sophia_seen

-- name: differing
-- Keys of the source that are not stored, or with another value of the cursor column.
SELECT n.key FROM unnest(%(keys)s::text[], %(cursors)s::text[]) AS n (key, cursor)
LEFT JOIN sophia.documents d ON d.collection_id = %(collection_id)s AND d.key = n.key
WHERE d.key IS NULL OR d.deleted OR d.missing <> '{}' OR d.body -> %(field)s::text IS DISTINCT FROM n.cursor::jsonb

-- name: unseen
-- Stored keys, in their order, that were stored before the source was read and that it did not have.
SELECT d.key FROM sophia.documents d
WHERE d.collection_id = %(collection_id)s AND NOT d.deleted AND d.position <= %(position)s AND d.key > %(after)s
  AND NOT EXISTS (SELECT FROM sophia_seen s WHERE s.key = d.key)
ORDER BY d.key LIMIT %(limit)s

-- name: position
SELECT id, position FROM sophia.collections WHERE name = %(collection)s
