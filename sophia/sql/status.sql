-- name: progress
-- How far every version is, without counting what it holds: the cost follows the number of versions. A backlog is
-- counted up to a limit.
SELECT v.id AS version_id, v.index_name AS index, v.number AS version, v.state, v.store, v.model, v.dimension,
       v.fingerprint, v.position, c.name AS collection, c.position AS collection_position,
       c.source_lsn::text AS source_lsn, c.source_time,
       (SELECT count(*) FROM (SELECT FROM sophia.documents d WHERE d.collection_id = c.id AND NOT d.bulk
                              AND d.position > v.position LIMIT %(most)s) waiting) AS backlog,
       (SELECT count(*) FROM sophia.shards s WHERE s.version_id = v.id) AS shards,
       (SELECT count(*) FROM sophia.shards s
        WHERE s.version_id = v.id AND s.position < GREATEST(c.bulk_position, 0)) AS shards_behind,
       b.p50 AS lag_p50_ms, b.p95 AS lag_p95_ms, b.last AS last_applied_at,
       EXISTS (SELECT 1 FROM sophia.leases x JOIN pg_stat_activity a ON a.pid = x.backend AND a.backend_start = x.started
               WHERE x.name = 'live/' || v.id) AS indexer_running,
       COALESCE(w.verified, 0) AS verified,
       CASE WHEN w.verified >= c.position THEN c.source_lsn
            ELSE (SELECT d.lsn FROM sophia.documents d WHERE d.collection_id = c.id AND NOT d.bulk
                  AND d.position <= w.verified ORDER BY d.position DESC LIMIT 1) END::text AS verified_lsn,
       COALESCE(w.next_bucket, 0) / 65536.0::float8 AS scanned, w.cycle_seconds AS scan_seconds,
       w.cycle_ended_at AS scan_ended_at, COALESCE(w.found, 0) AS drift_found, COALESCE(w.repaired, 0) AS drift_repaired,
       pg_stat_get_live_tuples(to_regclass(format('indexes.%%I', v.store_name || '_fresh'))) AS fresh
FROM sophia.index_versions v
JOIN sophia.collections c ON c.id = v.collection_id
LEFT JOIN sophia.scans w ON w.version_id = v.id
LEFT JOIN LATERAL (
    SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY lag_ms) AS p50,
           percentile_cont(0.95) WITHIN GROUP (ORDER BY lag_ms) AS p95, max(applied_at) AS last
    FROM (SELECT lag_ms, applied_at FROM sophia.batches
          WHERE version_id = v.id AND lane = 'live' ORDER BY applied_at DESC LIMIT 500) recent
) b ON true
WHERE v.state <> 'retired' ORDER BY v.index_name, v.number

-- name: contents
-- What versions hold, counted: the cost follows the number of documents.
SELECT v.id,
       (SELECT count(*) FROM sophia.documents d WHERE d.collection_id = v.collection_id AND NOT d.deleted),
       (SELECT count(*) FROM sophia.ledger l WHERE l.version_id = v.id AND NOT l.deleted AND l.state = 'applied'),
       (SELECT COALESCE(sum(cardinality(l.content_hashes)), 0) FROM sophia.ledger l WHERE l.version_id = v.id)::bigint,
       (SELECT count(*) FROM sophia.ledger l WHERE l.version_id = v.id AND l.state = 'parked'),
       (SELECT count(*) FROM sophia.ledger l WHERE l.version_id = v.id AND l.state = 'pending')
FROM sophia.index_versions v WHERE v.id = ANY(%(ids)s)

-- name: captures
-- `running` and `retained_bytes` are null where the slot is on another server.
SELECT k.source, k.slot, k.confirmed_lsn::text AS confirmed_lsn, k.updated_at,
       s.active AS running,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint END AS retained_bytes,
       (SELECT count(*) FROM sophia.captured_tables t WHERE t.source = k.source) AS tables,
       (SELECT count(*) FROM sophia.captured_tables t WHERE t.source = k.source AND t.complete) AS complete
FROM sophia.captures k LEFT JOIN pg_replication_slots s ON s.slot_name = k.slot ORDER BY k.source

-- name: last_taken
SELECT COALESCE(max(id), 0) FROM sophia.inbox

-- name: taken
-- How long changes took from their commit to the inbox, since a log entry.
SELECT id, EXTRACT(epoch FROM received_at - committed_at) FROM sophia.inbox
WHERE id > %(after)s ORDER BY id LIMIT %(limit)s

-- name: lag_history
-- The live batches of an index since a time, for a plot.
SELECT b.id, b.applied_at, b.lag_ms, b.documents FROM sophia.batches b
JOIN sophia.index_versions v ON v.id = b.version_id
WHERE v.index_name = %(index)s AND b.lane = 'live' AND b.lag_ms IS NOT NULL
ORDER BY b.applied_at DESC LIMIT %(limit)s

-- name: why
SELECT c.name AS collection, d.key, d.deleted, d.clock, d.lsn::text AS lsn, d.txid, d.committed_at, d.received_at,
       d.missing, t.table_name AS source_table, v.index_name AS index, v.number AS version, v.state AS version_state,
       v.model, v.fingerprint, v.store, v.store_name, l.state, l.clock AS indexed_clock, l.run,
       r.kind AS run_kind, r.code, r.image, r.host, r.started_at AS run_started_at,
       (SELECT string_agg(b, ', ') FROM jsonb_array_elements_text(r.backends -> (v.spec ->> 'model_fingerprint')) b)
           AS backend,
       l.updated_at AS indexed_at, l.deleted AS indexed_deleted,
       ARRAY(SELECT encode(h, 'hex') FROM unnest(l.content_hashes) h) AS content_hashes,
       (SELECT reason FROM sophia.dead_letters x WHERE x.collection_id = c.id AND x.key = d.key
        ORDER BY last_seen DESC LIMIT 1) AS dead_letter
FROM sophia.index_versions v
JOIN sophia.collections c ON c.id = v.collection_id
JOIN sophia.documents d ON d.collection_id = c.id
LEFT JOIN sophia.captured_tables t ON t.collection_id = c.id
LEFT JOIN sophia.ledger l ON l.version_id = v.id AND l.key = d.key
LEFT JOIN sophia.runs r ON r.run = l.run
WHERE v.index_name = %(index)s AND v.state = 'serving' AND d.key = %(key)s

-- name: history
-- The last changes of a key that the inbox took.
SELECT i.op::text AS op, i.clock, i.lsn::text AS lsn, i.txid, i.committed_at, i.received_at
FROM sophia.inbox i JOIN sophia.collections c ON c.id = i.collection_id
WHERE c.name = %(collection)s AND i.key = %(key)s ORDER BY i.id DESC LIMIT 20

-- name: collection_progress
SELECT name, generation, position, source_lsn::text AS source_lsn, source_time FROM sophia.collections ORDER BY name

-- name: collections
SELECT c.name, c.generation, c.position, c.source_lsn::text AS source_lsn, c.source_time,
       (SELECT count(*) FROM sophia.documents d WHERE d.collection_id = c.id AND NOT d.deleted) AS documents,
       (SELECT count(*) FROM sophia.dead_letters x WHERE x.collection_id = c.id)
       + (SELECT count(*) FROM sophia.parked p WHERE p.collection_id = c.id) AS dead_letters,
       (SELECT count(*) FROM sophia.parked p WHERE p.collection_id = c.id) AS parked,
       (SELECT count(*) FROM sophia.rereads r WHERE r.collection_id = c.id) AS rereads
FROM sophia.collections c WHERE %(names)s::text[] IS NULL OR c.name = ANY(%(names)s) ORDER BY c.name

-- name: touched_shards
-- Shards of a version that got live documents in a range of positions.
SELECT DISTINCT d.bucket / (65536 / %(shards)s) FROM sophia.documents d
WHERE d.collection_id = %(collection_id)s AND NOT d.bulk AND d.position > %(after)s AND d.position <= %(upto)s
ORDER BY 1

-- name: dead_letters
-- What could not be taken or indexed, what Estuary delivered in vain, and the rows that nobody has read again yet.
SELECT collection, key, index, stage, reason, attempts, first_seen, last_seen FROM (
    SELECT d.id, c.name AS collection, d.key, v.index_name AS index, d.stage, d.reason, d.attempts, d.first_seen,
           d.last_seen
    FROM sophia.dead_letters d
    LEFT JOIN sophia.collections c ON c.id = d.collection_id
    LEFT JOIN sophia.index_versions v ON v.id = d.version_id
    UNION ALL
    SELECT p.id, COALESCE(c.name, p.name), p.key, NULL, 'intake', p.reason, p.attempts, p.received_at, p.last_seen
    FROM sophia.parked p LEFT JOIN sophia.collections c ON c.id = p.collection_id
    UNION ALL
    SELECT 0, c.name, r.key, NULL, 'reread',
           r.reason || '; its row is read from the source by the intake, if `url_env` of the Estuary source names the '
           'database', 1, r.requested_at, r.requested_at
    FROM sophia.rereads r JOIN sophia.collections c ON c.id = r.collection_id
) found
ORDER BY last_seen DESC, id DESC LIMIT %(limit)s

-- name: captured
SELECT c.name FROM sophia.captured_tables t JOIN sophia.collections c ON c.id = t.collection_id WHERE t.complete

-- name: dead_letter_count
SELECT (SELECT count(*) FROM sophia.dead_letters) + (SELECT count(*) FROM sophia.parked)

-- name: batches
-- Batches by their ids, for the feed; `keys` are the first of each, a leading '-' marks a delete.
SELECT b.id, v.index_name AS index, v.number AS version, b.lane, b.run, b.documents, b.embedded, b.reused, b.deleted,
       b.lag_ms, b.keys, b.applied_at
FROM sophia.batches b JOIN sophia.index_versions v ON v.id = b.version_id
WHERE b.id = ANY(%(ids)s) ORDER BY b.id

-- name: newest_batches
-- The newest of those after an id, newest first.
SELECT b.id, v.index_name AS index, v.number AS version, b.lane, b.run, b.documents, b.embedded, b.reused, b.deleted,
       b.lag_ms, b.keys, b.applied_at
FROM sophia.batches b JOIN sophia.index_versions v ON v.id = b.version_id
WHERE b.id > %(after)s ORDER BY b.id DESC LIMIT %(limit)s

-- name: field_values
-- The frequent values of the fields of a collection, as JSON text, from a sample of its documents.
WITH sample AS (
    SELECT body FROM sophia.documents WHERE collection_id = %(collection_id)s AND NOT deleted LIMIT 5000
), counted AS (
    SELECT f.field, (sample.body -> f.field)::text AS value, count(*) AS documents,
           row_number() OVER (PARTITION BY f.field ORDER BY count(*) DESC, (sample.body -> f.field)::text) AS rank
    FROM sample CROSS JOIN unnest(%(fields)s::text[]) AS f (field)
    WHERE jsonb_typeof(sample.body -> f.field) IN ('string', 'number', 'boolean')
      AND length((sample.body -> f.field)::text) <= 100
    GROUP BY f.field, sample.body -> f.field
)
SELECT field, value FROM counted WHERE rank <= %(limit)s ORDER BY field, rank

-- name: shards_waiting
-- Bulk documents that came after a shard was compared last, counted up to a limit in each shard that is behind.
-- Nothing is counted where the positions show that fewer than `least` documents came at all.
SELECT s.shard, waiting.n
FROM sophia.index_versions v
JOIN sophia.collections c ON c.id = v.collection_id
JOIN sophia.shards s ON s.version_id = v.id AND s.position < c.bulk_position
CROSS JOIN LATERAL (
    SELECT count(*) AS n FROM (
        SELECT FROM sophia.documents d
        WHERE d.collection_id = c.id AND d.bulk AND d.position > s.position
          AND d.bucket >= s.shard * (65536 / %(shards)s) AND d.bucket < (s.shard + 1) * (65536 / %(shards)s)
        LIMIT %(most)s
    ) found
) waiting
WHERE v.id = %(version_id)s AND waiting.n > 0
  AND c.bulk_position - (SELECT min(o.position) FROM sophia.shards o WHERE o.version_id = v.id) >= %(least)s
ORDER BY s.shard
