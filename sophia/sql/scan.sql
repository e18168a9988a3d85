-- name: begin
INSERT INTO sophia.scans (version_id) VALUES (%(version_id)s) ON CONFLICT (version_id) DO NOTHING

-- name: state
-- How far the verification is, how far it can go, and whether the first load is over.
SELECT c.verified, v.position, c.next_bucket,
       NOT EXISTS (SELECT 1 FROM sophia.shards s WHERE s.version_id = v.id AND s.position < 0)
FROM sophia.scans c JOIN sophia.index_versions v ON v.id = c.version_id
WHERE c.version_id = %(version_id)s

-- name: changed
-- Keys that the live lane applied since the last look, oldest first.
SELECT d.key, d.position FROM sophia.documents d
WHERE d.collection_id = %(collection_id)s AND NOT d.bulk AND d.position > %(after)s AND d.position <= %(upto)s
ORDER BY d.position LIMIT %(limit)s

-- name: verified
UPDATE sophia.scans SET verified = GREATEST(verified, %(verified)s), verified_at = clock_timestamp(),
    found = found + %(found)s, repaired = repaired + %(repaired)s
WHERE version_id = %(version_id)s

-- name: scanned
-- A slice is done: the cycle begins with the first one, and ends with the last.
UPDATE sophia.scans SET next_bucket = CASE WHEN %(last)s >= 65535 THEN 0 ELSE %(last)s + 1 END,
    cycle_began_at = CASE WHEN %(first)s = 0 THEN %(began)s ELSE COALESCE(cycle_began_at, %(began)s) END,
    cycle_ended_at = CASE WHEN %(last)s >= 65535 THEN clock_timestamp() ELSE cycle_ended_at END,
    cycle_seconds = CASE WHEN %(last)s >= 65535 THEN EXTRACT(epoch FROM clock_timestamp()
        - CASE WHEN %(first)s = 0 THEN %(began)s ELSE COALESCE(cycle_began_at, %(began)s) END) ELSE cycle_seconds END,
    found = found + %(found)s, repaired = repaired + %(repaired)s
WHERE version_id = %(version_id)s
