-- name: limits
-- A lost commit of a cache costs nothing.
SELECT set_config('statement_timeout', %(milliseconds)s, false), set_config('synchronous_commit', 'off', false)

-- name: begin
INSERT INTO sophia.embedding_epochs (model) VALUES (%(model)s) ON CONFLICT DO NOTHING

-- name: epoch
SELECT epoch FROM sophia.embedding_epochs WHERE model = %(model)s

-- name: read
-- One row without an entry where there are none, for the epoch's sake.
SELECT e.epoch, c.text_hash, c.vector, c.used_on < current_date
FROM sophia.embedding_epochs e
LEFT JOIN sophia.embedding_cache c ON c.model = e.model AND c.text_hash = ANY(%(hashes)b::bytea[])
WHERE e.model = %(model)s

-- name: refresh
-- Whoever else refreshes the same rows does it as well.
UPDATE sophia.embedding_cache c SET used_on = current_date
FROM (SELECT text_hash FROM sophia.embedding_cache
      WHERE model = %(model)s AND text_hash = ANY(%(hashes)b::bytea[]) AND used_on < current_date
      FOR NO KEY UPDATE SKIP LOCKED) due
WHERE c.model = %(model)s AND c.text_hash = due.text_hash

-- name: write
-- The lock on the epoch makes an erasure wait for this, and this do nothing while an erasure is at it or after it. In
-- the order of the hashes, so that two writers that meet wait for each other instead of deadlocking.
WITH open AS MATERIALIZED (
    SELECT model FROM sophia.embedding_epochs WHERE model = %(model)s AND epoch = %(epoch)s FOR SHARE SKIP LOCKED
)
INSERT INTO sophia.embedding_cache (model, text_hash, vector)
SELECT open.model, new.text_hash, new.vector
FROM open, unnest(%(hashes)b::bytea[], %(vectors)b::bytea[]) new (text_hash, vector)
ORDER BY new.text_hash
ON CONFLICT (model, text_hash) DO UPDATE SET vector = EXCLUDED.vector, used_on = EXCLUDED.used_on

-- name: raise_epochs
-- All models without a list. Locked in order, so that two erasures do not deadlock.
UPDATE sophia.embedding_epochs e SET epoch = gen_random_uuid()
FROM (SELECT model FROM sophia.embedding_epochs
      WHERE %(models)s::text[] IS NULL OR model = ANY(%(models)s::text[]) ORDER BY model FOR UPDATE) held
WHERE e.model = held.model

-- name: erase
DELETE FROM sophia.embedding_cache WHERE %(models)s::text[] IS NULL OR model = ANY(%(models)s::text[])

-- name: transaction_id
SELECT pg_current_xact_id()::text::bigint
