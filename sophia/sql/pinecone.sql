-- name: documents
-- Documents that the ledger vouches for and of which a store holds at least a chunk.
SELECT count(*) FROM sophia.ledger
WHERE version_id = %(version_id)s AND state = 'applied' AND NOT deleted AND cardinality(content_hashes) > 0

-- name: ended
-- Whether a version was retired.
SELECT state = 'retired' FROM sophia.index_versions WHERE id = %(version_id)s
