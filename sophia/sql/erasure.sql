-- name: names
SELECT name FROM sophia.collections ORDER BY name

-- name: collection
SELECT id FROM sophia.collections WHERE name = %(name)s

-- name: index_names
SELECT DISTINCT index_name FROM sophia.index_versions WHERE collection_id = %(collection_id)s ORDER BY 1

-- name: lock_collection
-- Holds off the inbox, and not the writers' foreign keys.
SELECT generation, source_lsn::text FROM sophia.collections WHERE id = %(collection_id)s FOR NO KEY UPDATE

-- name: versions
-- What has ended in a store outside of the database was dropped there.
SELECT v.id, v.index_name, v.number, v.fingerprint, v.collection_id, c.name AS collection, v.state, v.store,
       v.store_name, v.dimension, v.spec, v.position
FROM sophia.index_versions v JOIN sophia.collections c ON c.id = v.collection_id
WHERE v.collection_id = %(collection_id)s AND (v.state <> 'retired' OR v.store = 'pgvector') ORDER BY v.id

-- name: unfinished_snapshot
SELECT source FROM sophia.captured_tables WHERE collection_id = %(collection_id)s AND NOT complete LIMIT 1

-- name: document
SELECT clock, deleted FROM sophia.documents WHERE collection_id = %(collection_id)s AND key = %(key)s

-- name: before
-- A former erasure of the same key.
SELECT clock FROM sophia.erasures WHERE collection_id = %(collection_id)s AND key_hash = %(key_hash)s

-- name: record
INSERT INTO sophia.erasures AS e (collection_id, key_hash, clock)
VALUES (%(collection_id)s, %(key_hash)s, %(clock)s::bigint[])
ON CONFLICT (collection_id, key_hash) DO UPDATE
SET clock = GREATEST(e.clock, EXCLUDED.clock), erased_at = now()

-- name: count
UPDATE sophia.collections
SET erasures = (SELECT count(*) FROM sophia.erasures WHERE collection_id = %(collection_id)s)
WHERE id = %(collection_id)s

-- name: erase_inbox
DELETE FROM sophia.inbox WHERE collection_id = %(collection_id)s AND key = %(key)s

-- name: erase_batches
UPDATE sophia.batches b SET keys = array_remove(array_remove(b.keys, %(key)s), '-' || %(key)s)
FROM sophia.index_versions v
WHERE v.id = b.version_id AND v.collection_id = %(collection_id)s AND b.keys && ARRAY[%(key)s, '-' || %(key)s]

-- name: stop_writers
-- Waits for every writer that is at it, and keeps all from beginning until this transaction has ended.
LOCK TABLE sophia.leases IN EXCLUSIVE MODE

-- name: fence
-- Whoever read the document before, writes nothing of it later: its epoch is over. It may take the lease anew at once.
UPDATE sophia.leases l SET epoch = l.epoch + 1
FROM sophia.index_versions v
WHERE v.collection_id = %(collection_id)s
  AND (l.name = 'live/' || v.id OR l.name LIKE 'repair/' || v.id || '/%%')

-- name: erase_ledger
-- But for versions in stores outside of the database: their rows say what is still to be removed there.
DELETE FROM sophia.ledger l USING sophia.index_versions v
WHERE v.id = l.version_id AND v.collection_id = %(collection_id)s AND l.key = %(key)s AND v.id <> ALL(%(outside)s)

-- name: mark_outside
-- Also where the ledger knows nothing of the key: the store may.
INSERT INTO sophia.ledger AS l (version_id, key, bucket, clock, state, deleted, run)
SELECT u.id, %(key)s, %(bucket)s, %(clock)s::bigint[], 'pending', true, 'erase' FROM unnest(%(outside)s::int[]) u (id)
ON CONFLICT (version_id, key) DO UPDATE
SET clock = EXCLUDED.clock, state = 'pending', deleted = true, held = GREATEST(l.held, cardinality(l.content_hashes)),
    content_hashes = '{}', vector_hashes = '{}', run = EXCLUDED.run, updated_at = clock_timestamp()

-- name: is_marked
SELECT 1 FROM sophia.ledger
WHERE version_id = %(version_id)s AND key = %(key)s AND clock = %(clock)s::bigint[] AND deleted

-- name: forget_marked
DELETE FROM sophia.ledger
WHERE version_id = %(version_id)s AND key = %(key)s AND clock = %(clock)s::bigint[] AND deleted

-- name: erase_dead_letters
DELETE FROM sophia.dead_letters WHERE collection_id = %(collection_id)s AND key = %(key)s

-- name: parked_clock
-- Of the newest delivery of the key that was parked or told that its row has left it.
SELECT max(clock) FROM (
    SELECT clock FROM sophia.parked WHERE collection_id = %(collection_id)s AND key = %(key)s AND clock IS NOT NULL
    UNION ALL
    SELECT clock FROM sophia.rereads WHERE collection_id = %(collection_id)s AND key = %(key)s
) told

-- name: erase_parked
-- Of what has no key that can be read: bodies that cannot be parted, and what may hold the key. Its values are written
-- as they are unless there is an escape.
DELETE FROM sophia.parked
WHERE collection_id = %(collection_id)s
  AND (key = %(key)s
       OR key IS NULL AND (documents = 0 OR position('\x5c'::bytea IN body) > 0
                           OR NOT EXISTS (SELECT FROM unnest(%(values)s::bytea[]) v WHERE position(v IN body) = 0)))

-- name: erase_rereads
DELETE FROM sophia.rereads WHERE collection_id = %(collection_id)s AND key = %(key)s

-- name: parked_left
SELECT count(*) FROM sophia.parked WHERE collection_id = %(collection_id)s AND key IS NULL

-- name: erase_document
DELETE FROM sophia.documents WHERE collection_id = %(collection_id)s AND key = %(key)s
