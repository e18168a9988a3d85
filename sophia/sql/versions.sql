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
RETURNING id, state

-- name: lock_position
-- Held while a version is created, so that no document slips between its live and its bulk lane.
SELECT id FROM sophia.collections WHERE id = %(collection_id)s FOR UPDATE

-- name: create_shards
INSERT INTO sophia.shards (version_id, shard) SELECT %(version_id)s, generate_series(0, %(shards)s - 1)

-- name: find
SELECT id, state, undropped FROM sophia.index_versions WHERE index_name = %(name)s AND fingerprint = %(fingerprint)s

-- name: keep_entries
UPDATE sophia.index_versions SET spec = spec || %(entries)s
WHERE id = %(version_id)s AND spec || %(entries)s IS DISTINCT FROM spec

-- name: revive
UPDATE sophia.index_versions v SET state = 'building', position = c.position
FROM sophia.collections c WHERE v.id = %(version_id)s AND c.id = v.collection_id

-- name: drop_shards
DELETE FROM sophia.shards WHERE version_id = %(version_id)s

-- name: switch
-- Of one index: the present version stops serving and goes on being fed, then the new one serves.
UPDATE sophia.index_versions
SET state = %(state)s,
    promoted_at = CASE WHEN %(state)s = 'serving' THEN clock_timestamp() ELSE promoted_at END,
    superseded_at = CASE WHEN %(state)s = 'retiring' THEN clock_timestamp() END
WHERE id = %(version_id)s

-- name: lock_versions
-- Locked, so that no position moves: the least compared shard of the bulk lane, and the most compared one.
SELECT v.id, v.number, v.state, v.position,
       (SELECT COALESCE(min(s.position), -1) FROM sophia.shards s WHERE s.version_id = v.id) AS least,
       (SELECT COALESCE(max(s.position), -1) FROM sophia.shards s WHERE s.version_id = v.id) AS most,
       c.bulk_position
FROM sophia.index_versions v JOIN sophia.collections c ON c.id = v.collection_id
WHERE v.index_name = %(name)s AND v.state <> 'retired'
ORDER BY v.id FOR NO KEY UPDATE OF v

-- name: superseded
-- The version that stopped serving last, and is still fed.
SELECT v.number FROM sophia.index_versions v
WHERE v.index_name = %(name)s AND v.state = 'retiring' AND v.superseded_at IS NOT NULL
ORDER BY v.superseded_at DESC LIMIT 1

-- name: every
-- All versions of an index, also retired ones, the newest first.
SELECT v.number AS version, v.state, v.model, v.dimension, v.fingerprint, v.position,
       (SELECT count(*) FROM sophia.ledger l
        WHERE l.version_id = v.id AND NOT l.deleted AND l.state = 'applied') AS documents,
       v.created_at, v.promoted_at, v.superseded_at
FROM sophia.index_versions v WHERE v.index_name = %(name)s ORDER BY v.number DESC

-- name: fence
-- Whoever holds a lease of the version writes nothing more: the epoch moved on under it.
UPDATE sophia.leases SET epoch = epoch + 1
WHERE name = 'live/' || %(version_id)s OR name LIKE 'repair/' || %(version_id)s || '/%%'

-- name: retire
UPDATE sophia.index_versions SET state = 'retired' WHERE id = %(version_id)s

-- name: forget_some
DELETE FROM sophia.ledger WHERE version_id = %(version_id)s AND key IN (
    SELECT key FROM sophia.ledger WHERE version_id = %(version_id)s LIMIT %(limit)s)

-- name: over_time
-- Versions that stopped serving so long ago that nobody will go back to them.
SELECT v.id FROM sophia.index_versions v
WHERE v.state = 'retiring' AND v.superseded_at < now() - make_interval(days => %(days)s) ORDER BY v.id

-- name: forget
DELETE FROM sophia.ledger WHERE version_id = %(version_id)s
