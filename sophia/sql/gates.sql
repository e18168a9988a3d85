-- name: coverage
-- What a version has of the documents that there were at `position`: current ones, parked ones, those that it does not
-- have as they are now, and shards that were never compared with the bulk lane's newest.
SELECT count(*) FILTER (WHERE NOT d.deleted),
       count(*) FILTER (WHERE l.state = 'parked' AND l.clock = d.clock),
       count(*) FILTER (WHERE (l.key IS NULL AND NOT d.deleted) OR l.clock < d.clock OR l.state = 'pending'),
       (SELECT count(*) FROM sophia.shards s JOIN sophia.collections c ON c.id = %(collection_id)s
        WHERE s.version_id = %(version_id)s AND s.position < GREATEST(LEAST(c.bulk_position, %(position)s), 0)),
       (SELECT count(*) FROM sophia.shards s WHERE s.version_id = %(version_id)s)
FROM sophia.documents d
LEFT JOIN sophia.ledger l ON l.version_id = %(version_id)s AND l.key = d.key
WHERE d.collection_id = %(collection_id)s AND d.position <= %(position)s

-- name: position
SELECT position FROM sophia.collections WHERE id = %(collection_id)s
