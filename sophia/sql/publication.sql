-- name: intend
-- In the transaction that lets a version serve.
INSERT INTO sophia.publications AS p (index_name, version_id, done) VALUES (%(name)s, %(version_id)s, %(done)s)
ON CONFLICT (index_name) DO UPDATE SET version_id = EXCLUDED.version_id, done = EXCLUDED.done, at = now()

-- name: open
-- Versions whose public name is still to be moved, of one index and store or of all.
SELECT v.id, v.index_name, v.number, v.fingerprint, v.collection_id, c.name AS collection, v.state, v.store,
       v.store_name, v.dimension, v.spec, v.position
FROM sophia.publications p
JOIN sophia.index_versions v ON v.id = p.version_id
JOIN sophia.collections c ON c.id = v.collection_id
WHERE NOT p.done AND COALESCE(v.index_name = %(name)s, true) AND COALESCE(v.store = %(kind)s, true) ORDER BY v.index_name

-- name: is_open
SELECT 1 FROM sophia.publications WHERE index_name = %(name)s AND version_id = %(version_id)s AND NOT done

-- name: published
UPDATE sophia.publications SET done = true, at = now() WHERE index_name = %(name)s AND version_id = %(version_id)s

-- name: undropped
-- Retired versions of which a store outside of the database may still hold something, of one index and store or of all.
SELECT v.id, v.index_name, v.number, v.fingerprint, v.collection_id, c.name AS collection, v.state, v.store,
       v.store_name, v.dimension, v.spec, v.position
FROM sophia.index_versions v JOIN sophia.collections c ON c.id = v.collection_id
WHERE v.undropped AND COALESCE(v.index_name = %(name)s, true) AND COALESCE(v.store = %(kind)s, true) ORDER BY v.id

-- name: mark_undropped
UPDATE sophia.index_versions SET undropped = %(undropped)s WHERE id = %(version_id)s

-- name: is_undropped
SELECT 1 FROM sophia.index_versions WHERE id = %(version_id)s AND undropped AND state = 'retired'
