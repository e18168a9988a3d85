-- name: state
SELECT slot, publication, system_identifier, confirmed_lsn::text, epoch FROM sophia.captures WHERE source = %(source)s

-- name: take_epoch
-- Whoever starts takes the next epoch; an older process finds out at its next transaction.
INSERT INTO sophia.captures (source, slot, publication, system_identifier, epoch)
VALUES (%(source)s, %(slot)s, %(publication)s, %(system)s, 1)
ON CONFLICT (source) DO UPDATE SET epoch = sophia.captures.epoch + 1, slot = EXCLUDED.slot,
    publication = EXCLUDED.publication, updated_at = now()
RETURNING epoch

-- name: begin_generation
UPDATE sophia.captures SET system_identifier = %(system)s, confirmed_lsn = %(lsn)s::pg_lsn, updated_at = now()
WHERE source = %(source)s

-- name: confirm
-- Part of every inbox transaction of a capture. No row: someone else took the epoch, so nothing may be written.
UPDATE sophia.captures SET confirmed_lsn = COALESCE(GREATEST(confirmed_lsn, %(lsn)s::pg_lsn), confirmed_lsn), updated_at = now()
WHERE source = %(source)s AND epoch = %(epoch)s

-- name: tables
SELECT c.name, t.table_name, t.relation_oid, t.consistent_point::text, t.complete
FROM sophia.captured_tables t JOIN sophia.collections c ON c.id = t.collection_id WHERE t.source = %(source)s

-- name: forget_tables
UPDATE sophia.captured_tables SET complete = false WHERE source = %(source)s

-- name: forget_collections
UPDATE sophia.captured_tables t SET complete = false FROM sophia.collections c
WHERE c.id = t.collection_id AND t.source = %(source)s AND c.name = ANY(%(names)s)

-- name: begin_snapshot
INSERT INTO sophia.captured_tables (source, collection_id, table_name, relation_oid, consistent_point)
SELECT %(source)s, id, %(table)s, %(oid)s, %(lsn)s::pg_lsn FROM sophia.collections WHERE name = %(collection)s
ON CONFLICT (source, collection_id) DO UPDATE
SET table_name = EXCLUDED.table_name, relation_oid = EXCLUDED.relation_oid, rows = 0, complete = false,
    consistent_point = EXCLUDED.consistent_point, started_at = now(), completed_at = NULL

-- name: end_snapshot
UPDATE sophia.captured_tables t SET complete = true, rows = %(rows)s, completed_at = now()
FROM sophia.collections c WHERE t.collection_id = c.id AND t.source = %(source)s AND c.name = %(collection)s

-- name: generation
SELECT COALESCE(max(generation), 0) FROM sophia.collections WHERE name = ANY(%(names)s)

-- name: collection_generation
SELECT generation FROM sophia.collections WHERE name = %(name)s
