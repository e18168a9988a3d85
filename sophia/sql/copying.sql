-- name: now
SELECT clock_timestamp()

-- name: ledger
-- Entries of keys that the ledger does not have.
COPY sophia.ledger (version_id, key, bucket, clock, state, deleted, content_hashes, vector_hashes, run, updated_at)
FROM STDIN (FORMAT BINARY)

-- name: pgvector
-- Chunks of such keys, into the version's own table.
COPY {table} (id, key, bucket, chunk, span, content, content_hash, embedding, metadata, clock, lsn, txid, committed_at,
              run, indexed_at)
FROM STDIN (FORMAT BINARY)
