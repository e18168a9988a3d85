-- name: create_table
CREATE TABLE {table} (
    id           uuid PRIMARY KEY,
    key          text NOT NULL,
    bucket       integer NOT NULL,
    chunk        integer NOT NULL,
    span         int4range NOT NULL,
    content      text NOT NULL,
    content_hash bytea NOT NULL,
    embedding    vector({dimension}) NOT NULL,
    metadata     jsonb NOT NULL,
    clock        bigint[] NOT NULL,
    lsn          pg_lsn,
    txid         bigint,
    committed_at timestamptz,
    run          text NOT NULL,
    indexed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    tsv          tsvector GENERATED ALWAYS AS (to_tsvector('english', content)) STORED,
    UNIQUE (key, chunk)
) WITH (fillfactor = 85)

-- name: create_fresh_table
-- The rows that the graph does not have yet. Who reads the version's table reads these, too.
CREATE TABLE {fresh} (PRIMARY KEY (id), UNIQUE (key, chunk)) INHERITS ({table}) WITH (vacuum_truncate = false)

-- name: create_hash_index
CREATE INDEX {name} ON {table} (content_hash)

-- name: create_bucket_index
CREATE INDEX {name} ON {table} (bucket)

-- name: create_text_index
CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {table} USING gin (tsv)

-- name: create_hnsw_index
CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {table} USING hnsw ({graph}) WITH (m = 16, ef_construction = 64)

-- name: graph_full
embedding vector_cosine_ops

-- name: graph_half
(embedding::halfvec({dimension})) halfvec_cosine_ops

-- name: graph_binary
(binary_quantize(embedding)::bit({dimension})) bit_hamming_ops

-- name: near_full
embedding <=> %(vector)b::vector

-- name: near_half
embedding::halfvec({dimension}) <=> %(vector)b::vector::halfvec({dimension})

-- name: near_binary
binary_quantize(embedding)::bit({dimension}) <~> binary_quantize(%(vector)b::vector)::bit({dimension})

-- name: build_progress
-- Of the index that is being built on a table, here or by another process. A graph is built in one long phase, whose
-- rows are counted; before it, the server waits for older transactions.
SELECT i.relname, p.phase, p.tuples_done, GREATEST(p.tuples_total, c.reltuples::bigint, 0),
       EXTRACT(epoch FROM clock_timestamp() - a.query_start)::float8
FROM pg_stat_progress_create_index p
JOIN pg_class c ON c.oid = p.relid
LEFT JOIN pg_class i ON i.oid = p.index_relid
LEFT JOIN pg_stat_activity a ON a.pid = p.pid
WHERE p.datname = current_database() AND p.relid = to_regclass(%(name)s) AND i.relname IS NOT NULL
ORDER BY a.query_start LIMIT 1

-- name: try_lock
SELECT pg_try_advisory_lock(hashtextextended(%(name)s, 0))

-- name: unlock
SELECT pg_advisory_unlock(hashtextextended(%(name)s, 0))

-- name: index_state
-- Whether an index is whole; no row if there is none. A build that was cut off leaves an invalid one behind.
SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%(name)s)

-- name: estimate
SELECT GREATEST(reltuples, 0)::bigint FROM pg_class WHERE oid = to_regclass(%(name)s)

-- name: analyze
ANALYZE {table}

-- name: create_field_index
-- Of a metadata field: its hash, since a value may be longer than an index entry.
CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {table} (jsonb_hash_extended(metadata -> {field}, 0))

-- name: create_age_index
CREATE INDEX {name} ON {table} (indexed_at)

-- name: filter
jsonb_hash_extended(metadata -> {field}, 0) = jsonb_hash_extended({value}::jsonb, 0) AND metadata -> {field} = {value}::jsonb

-- name: estimate_filter
-- What a filter's estimate goes by: only the indexed hash has statistics.
jsonb_hash_extended(metadata -> {field}, 0) = jsonb_hash_extended({value}::jsonb, 0)

-- name: matches
-- The planner's estimate of the rows that filters pass. Counting them would take as long as the search.
EXPLAIN (FORMAT JSON) SELECT 1 FROM {table} WHERE {filters}

-- name: plan
-- How the search in this transaction is planned. Iterative scans find enough rows behind a filter.
SELECT set_config('hnsw.ef_search', %(effort)s, true), set_config('hnsw.iterative_scan', %(iterative)s, true),
       ARRAY(SELECT set_config(setting, 'off', true) FROM unnest(%(off)s::text[]) setting)

-- name: delete_surplus
-- Only what the ledger has at this very clock: an older writer's rows are not its business.
DELETE FROM {table} s
USING unnest(%(keys)b::text[], %(clocks)b::text[], %(counts)s::int[]) AS u (key, clock, count)
JOIN sophia.ledger l ON l.version_id = %(version_id)s AND l.key = u.key AND l.clock = u.clock::bigint[]
WHERE s.key = u.key AND s.chunk >= u.count

-- name: discard
-- Rows of keys that the ledger does not hold as live.
DELETE FROM {table} s WHERE s.key = ANY(%(keys)s)
  AND NOT EXISTS (SELECT 1 FROM sophia.ledger l
                  WHERE l.version_id = %(version_id)s AND l.key = s.key AND NOT l.deleted AND l.state = 'applied')

-- name: upsert
-- Into one of the two tables of a version, and out of the other. Arrays travel in binary: vectors as text cost ten times
-- the rest of the row, and quoting texts is slow, too.
WITH given AS (
    SELECT u.* FROM unnest(%(ids)b::uuid[], %(keys)b::text[], %(buckets)s::int[], %(chunks)s::int[], %(starts)s::int[],
                           %(stops)s::int[], %(contents)b::text[], %(hashes)b::bytea[], %(vectors)b::vector[],
                           %(metadata)b::text[], %(clocks)b::text[], %(lsns)b::text[], %(txids)s::bigint[],
                           %(times)s::timestamptz[])
         AS u (id, key, bucket, chunk, start, stop, content, content_hash, embedding, metadata, clock, lsn, txid,
               committed_at)
    JOIN sophia.ledger l ON l.version_id = %(version_id)s AND l.key = u.key AND l.clock = u.clock::bigint[]
), elsewhere AS (
    DELETE FROM ONLY {other} s USING given g WHERE s.key = g.key AND s.chunk = g.chunk
)
INSERT INTO {target} (id, key, bucket, chunk, span, content, content_hash, embedding, metadata, clock, lsn, txid,
                      committed_at, run)
SELECT id, key, bucket, chunk, int4range(start, stop), content, content_hash, embedding, metadata::jsonb,
       clock::bigint[], lsn::pg_lsn, txid, committed_at, %(run)s
FROM given
-- A row that someone added by hand may have this place under another id.
ON CONFLICT (key, chunk) DO UPDATE
SET id = EXCLUDED.id, span = EXCLUDED.span, content = EXCLUDED.content, content_hash = EXCLUDED.content_hash,
    embedding = EXCLUDED.embedding, metadata = EXCLUDED.metadata, clock = EXCLUDED.clock, lsn = EXCLUDED.lsn,
    txid = EXCLUDED.txid, committed_at = EXCLUDED.committed_at, run = EXCLUDED.run, indexed_at = clock_timestamp()

-- name: refresh
-- The text is the same under the same id: only what belongs to the row changes. Other metadata make an entry in every
-- index, the graph among them, so a live row gets them among the fresh ones.
WITH given AS (
    SELECT u.* FROM unnest(%(ids)b::uuid[], %(keys)b::text[], %(starts)s::int[], %(stops)s::int[], %(metadata)b::text[],
                           %(clocks)b::text[], %(lsns)b::text[], %(txids)s::bigint[], %(times)s::timestamptz[])
         AS u (id, key, start, stop, metadata, clock, lsn, txid, committed_at)
    JOIN sophia.ledger l ON l.version_id = %(version_id)s AND l.key = u.key AND l.clock = u.clock::bigint[]
), moved AS (
    DELETE FROM ONLY {table} s USING given g WHERE %(live)s AND s.id = g.id AND s.metadata <> g.metadata::jsonb
    RETURNING s.id, s.key, s.bucket, s.chunk, s.content, s.content_hash, s.embedding
), kept AS (
    UPDATE {table} s
    SET span = int4range(g.start, g.stop), metadata = g.metadata::jsonb, clock = g.clock::bigint[], lsn = g.lsn::pg_lsn,
        txid = g.txid, committed_at = g.committed_at, run = %(run)s, indexed_at = clock_timestamp()
    FROM given g WHERE s.id = g.id AND NOT EXISTS (SELECT 1 FROM moved m WHERE m.id = g.id)
)
INSERT INTO {fresh} (id, key, bucket, chunk, span, content, content_hash, embedding, metadata, clock, lsn, txid,
                     committed_at, run)
SELECT m.id, m.key, m.bucket, m.chunk, int4range(g.start, g.stop), m.content, m.content_hash, m.embedding,
       g.metadata::jsonb, g.clock::bigint[], g.lsn::pg_lsn, g.txid, g.committed_at, %(run)s
FROM moved m JOIN given g USING (id)

-- name: vectors
-- Only what the ledger vouches for: a vector that someone edited must not be handed on to other rows.
SELECT DISTINCT ON (s.content_hash) s.content_hash, s.embedding FROM {table} s
JOIN sophia.ledger l ON l.version_id = %(version_id)s AND l.key = s.key
WHERE s.content_hash = ANY(%(hashes)s) AND l.content_hashes[s.chunk + 1] = s.content_hash
  AND l.vector_hashes[s.chunk + 1] = substring(sha256(vector_send(s.embedding)) FOR 16)

-- name: sound_vectors
-- A vector that hashes to what the ledger noted of this place is the one that was computed from the text noted there.
SELECT l.content_hashes[s.chunk + 1], s.embedding FROM {table} s
JOIN sophia.ledger l ON l.version_id = %(version_id)s AND l.key = s.key
WHERE s.key = ANY(%(keys)s) AND substring(sha256(vector_send(s.embedding)) FOR 16) = l.vector_hashes[s.chunk + 1]

-- name: inventory
SELECT key, array_agg(id ORDER BY chunk), array_agg(content_hash ORDER BY chunk),
       array_agg(substring(sha256(convert_to(content, 'UTF8')) FOR 16) ORDER BY chunk),
       array_agg(substring(sha256(vector_send(embedding)) FOR 16) ORDER BY chunk),
       array_agg(DISTINCT metadata::text), min(clock), max(clock)
FROM {table} WHERE bucket BETWEEN %(first)s AND %(last)s GROUP BY key

-- name: inventory_of_keys
SELECT key, array_agg(id ORDER BY chunk), array_agg(content_hash ORDER BY chunk),
       array_agg(substring(sha256(convert_to(content, 'UTF8')) FOR 16) ORDER BY chunk),
       array_agg(substring(sha256(vector_send(embedding)) FOR 16) ORDER BY chunk),
       array_agg(DISTINCT metadata::text), min(clock), max(clock)
FROM {table} WHERE key = ANY(%(keys)s) GROUP BY key

-- name: has_vector_index
SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(%(name)s) AND indisvalid

-- name: sample
SELECT DISTINCT ON (t.id) t.id, t.key, t.content, t.metadata, t.embedding
FROM unnest(%(ids)s::uuid[]) AS u (id)
CROSS JOIN LATERAL (SELECT * FROM {table} WHERE id >= u.id ORDER BY id LIMIT 1) t

-- name: chunks_of
SELECT chunk, lower(span), upper(span), encode(content_hash, 'hex'), clock, lsn::text, txid, committed_at, run,
       indexed_at
FROM {table} WHERE key = %(key)s ORDER BY chunk

-- name: erase
DELETE FROM {table} WHERE key = ANY(%(keys)s)

-- name: counts
SELECT count(DISTINCT key), count(*) FROM {table}

-- name: search_all
SELECT key, chunk, 1 - (embedding <=> %(vector)b::vector) AS score, content, metadata, lsn::text, committed_at, indexed_at
FROM {table} WHERE {filters}
ORDER BY embedding <=> %(vector)b::vector, id LIMIT %(k)s

-- name: search
-- The graph's neighbours, and of the fresh rows all. A graph that holds less than the vectors proposes candidates.
WITH near AS (
    SELECT id, embedding <=> %(vector)b::vector AS distance
    FROM (SELECT id, embedding FROM ONLY {table} WHERE {filters} ORDER BY {near} LIMIT %(candidates)s) candidate
    ORDER BY distance LIMIT %(k)s
), recent AS (
    SELECT id, embedding <=> %(vector)b::vector AS distance FROM {fresh} WHERE {filters} ORDER BY distance LIMIT %(k)s
)
SELECT s.key, s.chunk, 1 - n.distance AS score, s.content, s.metadata, s.lsn::text, s.committed_at, s.indexed_at
FROM (SELECT * FROM near UNION ALL SELECT * FROM recent) n JOIN {table} s USING (id)
ORDER BY n.distance, s.id LIMIT %(k)s

-- name: hybrid
-- Reciprocal rank fusion of the vector's and the full text's best candidates.
WITH near AS (
    SELECT id, embedding <=> %(vector)b::vector AS distance FROM ONLY {table} WHERE {filters}
    ORDER BY {near} LIMIT %(candidates)s
), recent AS (
    SELECT id, embedding <=> %(vector)b::vector AS distance FROM {fresh} WHERE {filters}
    ORDER BY distance LIMIT %(candidates)s
), by_vector AS (
    SELECT id, row_number() OVER (ORDER BY distance) AS rank
    FROM (SELECT * FROM near UNION ALL SELECT * FROM recent) v ORDER BY rank LIMIT %(candidates)s
), by_text AS (
    SELECT id, row_number() OVER (ORDER BY score DESC, id) AS rank
    FROM (SELECT id, ts_rank_cd(tsv, q) AS score FROM {table}, websearch_to_tsquery('english', %(text)s) q
          WHERE tsv @@ q AND {filters} ORDER BY score DESC LIMIT %(candidates)s) t
), fused AS (
    SELECT id, sum(1.0 / (60 + rank)) AS score
    FROM (SELECT * FROM by_vector UNION ALL SELECT * FROM by_text) r GROUP BY id
)
SELECT s.key, s.chunk, f.score::float8, s.content, s.metadata, s.lsn::text, s.committed_at, s.indexed_at
FROM fused f JOIN {table} s USING (id) ORDER BY f.score DESC, s.id LIMIT %(k)s

-- name: fresh_count
SELECT count(*) FROM {fresh}

-- name: fresh_oldest
-- The oldest fresh rows, but none of the newest.
SELECT id, key, indexed_at FROM {fresh}
WHERE indexed_at <= (SELECT indexed_at FROM {fresh} ORDER BY indexed_at DESC OFFSET %(kept)s LIMIT 1)
ORDER BY indexed_at LIMIT %(limit)s

-- name: fresh_lock
-- Whoever writes a key holds its row of the ledger. A key that is being written is left alone, and nobody waited for.
SELECT key FROM sophia.ledger WHERE version_id = %(version_id)s AND key = ANY(%(keys)s) FOR UPDATE SKIP LOCKED

-- name: fresh_absorb
-- Into the version's own table, and so into its graph, unless they were written again meanwhile.
WITH moved AS (
    DELETE FROM {fresh} f USING unnest(%(ids)s::uuid[], %(ages)s::timestamptz[]) AS u (id, indexed_at)
    WHERE f.id = u.id AND f.indexed_at = u.indexed_at AND f.key = ANY(%(keys)s) RETURNING f.*
)
INSERT INTO {table} (id, key, bucket, chunk, span, content, content_hash, embedding, metadata, clock, lsn, txid,
                     committed_at, run, indexed_at)
SELECT id, key, bucket, chunk, span, content, content_hash, embedding, metadata, clock, lsn, txid, committed_at, run,
       indexed_at
FROM moved
-- As in `upsert`.
ON CONFLICT (key, chunk) DO UPDATE
SET id = EXCLUDED.id, bucket = EXCLUDED.bucket, span = EXCLUDED.span, content = EXCLUDED.content,
    content_hash = EXCLUDED.content_hash, embedding = EXCLUDED.embedding, metadata = EXCLUDED.metadata,
    clock = EXCLUDED.clock, lsn = EXCLUDED.lsn, txid = EXCLUDED.txid, committed_at = EXCLUDED.committed_at,
    run = EXCLUDED.run, indexed_at = EXCLUDED.indexed_at
