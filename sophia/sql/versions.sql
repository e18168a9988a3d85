-- name: all
SELECT v.id, v.index_name, v.number, v.fingerprint, v.collection_id, c.name AS collection, v.state, v.store,
       v.store_name, v.dimension, v.spec, v.position
FROM sophia.index_versions v JOIN sophia.collections c ON c.id = v.collection_id
WHERE v.state <> 'retired' ORDER BY v.index_name, v.number

-- name: serving
-- One look-up yields the version, where it lives and the model that embeds its queries.
SELECT v.id, v.index_name, v.number, v.fingerprint, v.collection_id, c.name AS collection, v.state, v.store,
       v.store_name, v.dimension, v.spec, v.position
FROM sophia.index_versions v JOIN sophia.collections c ON c.id = v.collection_id
WHERE v.index_name = %(name)s AND v.state = 'serving'

-- name: lock_index
SELECT pg_advisory_xact_lock(hashtextextended('sophia.index:' || %(name)s, 0))

-- name: create
-- The live lane begins at the collection's present end; what is there already is the bulk lane's work.
INSERT INTO sophia.index_versions (index_name, number, fingerprint, collection_id, state, store, store_name, model,
                                   dimension, spec, position, promoted_at)
SELECT %(name)s, n.number, %(fingerprint)s, c.id,
       CASE WHEN s.id IS NULL THEN 'serving' ELSE 'building' END, %(store)s,
       %(name)s || '_v' || n.number, %(model)s, %(dimension)s, %(spec)s, c.position,
       CASE WHEN s.id IS NULL THEN now() END
FROM sophia.collections c
CROSS JOIN LATERAL (SELECT COALESCE(max(number), 0) + 1 AS number FROM sophia.index_versions
                    WHERE index_name = %(name)s) n
LEFT JOIN sophia.index_versions s ON s.index_name = %(name)s AND s.state = 'serving'
WHERE c.id = %(collection_id)s
RETURNING id

-- name: lock_position
-- Held while a version is created, so that no document slips between its live and its bulk lane.
SELECT id FROM sophia.collections WHERE id = %(collection_id)s FOR UPDATE

-- name: create_shards
INSERT INTO sophia.shards (version_id, shard) SELECT %(version_id)s, generate_series(0, %(shards)s - 1)

-- name: find
SELECT id, state FROM sophia.index_versions WHERE index_name = %(name)s AND fingerprint = %(fingerprint)s

-- name: revive
UPDATE sophia.index_versions v SET state = 'building', position = c.position
FROM sophia.collections c WHERE v.id = %(version_id)s AND c.id = v.collection_id

-- name: reset_shards
UPDATE sophia.shards SET position = -1, checked_at = NULL WHERE version_id = %(version_id)s

-- name: set_state
UPDATE sophia.index_versions SET state = %(state)s, promoted_at = CASE WHEN %(state)s = 'serving' THEN now() ELSE promoted_at END
WHERE id = %(version_id)s

-- name: positions
SELECT id, state, position FROM sophia.index_versions WHERE index_name = %(name)s AND state <> 'retired'
ORDER BY id FOR UPDATE

-- name: forget
DELETE FROM sophia.ledger WHERE version_id = %(version_id)s
