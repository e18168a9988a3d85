-- name: state
SELECT slot, publication, system_identifier, confirmed_lsn::text, epoch FROM sophia.captures WHERE source = %(source)s

-- name: take_epoch
-- Whoever starts takes the next epoch; an older process finds out at its next transaction.
INSERT INTO sophia.captures (source, slot, publication, system_identifier, epoch)
VALUES (%(source)s, %(slot)s, %(publication)s, %(system)s, 1)
ON CONFLICT (source) DO UPDATE SET epoch = sophia.captures.epoch + 1, slot = EXCLUDED.slot,
    publication = EXCLUDED.publication, updated_at = now()
RETURNING epoch

-- name: abandon
-- Nothing of what was captured before counts any more; a slot that is made now is not trusted before its position is
-- stored. No row: someone else took the epoch.
WITH fenced AS (
    UPDATE sophia.captures SET confirmed_lsn = NULL, updated_at = now()
    WHERE source = %(source)s AND epoch = %(epoch)s RETURNING source
), forgotten AS (
    UPDATE sophia.captured_tables SET complete = false, last_key = NULL WHERE source IN (SELECT source FROM fenced)
)
SELECT count(*) FROM fenced

-- name: forget_shapes
-- All tables of a source are to be copied anew.
UPDATE sophia.captured_tables SET complete = false, last_key = NULL, shape = NULL WHERE source = %(source)s

-- name: begin_generation
UPDATE sophia.captures SET system_identifier = %(system)s, confirmed_lsn = %(lsn)s::pg_lsn, updated_at = now()
WHERE source = %(source)s

-- name: confirm
-- The first statement of every inbox transaction of a capture; its row lock holds the epoch until commit. No row:
-- someone else took the epoch, so nothing may be written.
UPDATE sophia.captures SET confirmed_lsn = COALESCE(GREATEST(confirmed_lsn, %(lsn)s::pg_lsn), confirmed_lsn), updated_at = now()
WHERE source = %(source)s AND epoch = %(epoch)s
RETURNING epoch

-- name: tables
SELECT c.name, t.table_name, t.relation_oid, t.complete, t.last_key, t.shape, t.rows
FROM sophia.captured_tables t JOIN sophia.collections c ON c.id = t.collection_id WHERE t.source = %(source)s

-- name: forget_collections
UPDATE sophia.captured_tables t SET complete = false, last_key = NULL FROM sophia.collections c
WHERE c.id = t.collection_id AND t.source = %(source)s AND c.name = ANY(%(names)s)

-- name: begin_snapshot
INSERT INTO sophia.captured_tables (source, collection_id, table_name, relation_oid, consistent_point, shape)
SELECT %(source)s, id, %(table)s, %(oid)s, %(lsn)s::pg_lsn, %(shape)s FROM sophia.collections WHERE name = %(collection)s
ON CONFLICT (source, collection_id) DO UPDATE
SET table_name = EXCLUDED.table_name, relation_oid = EXCLUDED.relation_oid, rows = 0, complete = false,
    consistent_point = EXCLUDED.consistent_point, shape = EXCLUDED.shape, last_key = NULL,
    started_at = now(), completed_at = NULL

-- name: snapshot_progress
UPDATE sophia.captured_tables t SET rows = %(rows)s, last_key = COALESCE(%(last_key)s::text[], last_key)
FROM sophia.collections c WHERE t.collection_id = c.id AND t.source = %(source)s AND c.name = %(collection)s

-- name: end_snapshot
UPDATE sophia.captured_tables t SET complete = true, rows = %(rows)s, last_key = NULL, completed_at = now()
FROM sophia.collections c WHERE t.collection_id = c.id AND t.source = %(source)s AND c.name = %(collection)s

-- name: generation
SELECT COALESCE(max(generation), 0) FROM sophia.collections WHERE name = ANY(%(names)s)

-- name: collection_generation
SELECT generation FROM sophia.collections WHERE name = %(name)s
