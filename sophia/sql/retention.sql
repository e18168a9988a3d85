-- name: inbox
DELETE FROM sophia.inbox WHERE received_at < now() - make_interval(days => %(days)s)

-- name: batches
DELETE FROM sophia.batches WHERE applied_at < now() - make_interval(days => %(days)s)

-- name: tombstones
-- Only where every version that is fed has taken the delete.
DELETE FROM sophia.documents d
WHERE d.deleted AND d.received_at < now() - make_interval(days => %(days)s)
  AND NOT EXISTS (SELECT 1 FROM sophia.index_versions v
                  JOIN sophia.ledger l ON l.version_id = v.id AND l.key = d.key AND NOT l.deleted
                  WHERE v.collection_id = d.collection_id AND v.state <> 'retired')

-- name: ledger
DELETE FROM sophia.ledger l USING sophia.index_versions v
WHERE v.id = l.version_id AND v.state = 'retired' AND l.updated_at < now() - make_interval(days => %(days)s)

-- name: dead_letters
DELETE FROM sophia.dead_letters WHERE last_seen < now() - make_interval(days => %(days)s)

-- name: parked
DELETE FROM sophia.parked WHERE last_seen < now() - make_interval(days => %(days)s)

-- name: estuary_commits
DELETE FROM sophia.estuary_commits WHERE received_at < now() - make_interval(days => %(days)s)

-- name: cache
-- An entry that is in use this moment is not over its time.
DELETE FROM sophia.embedding_cache c
USING (SELECT model, text_hash FROM sophia.embedding_cache
       WHERE used_on < current_date - %(days)s::int FOR UPDATE SKIP LOCKED) old
WHERE c.model = old.model AND c.text_hash = old.text_hash
