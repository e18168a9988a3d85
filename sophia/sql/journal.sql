-- name: set_up
-- The journal of the stand-in, in SQLite: an offset is handed out once and never again.
CREATE TABLE IF NOT EXISTS documents (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    collection TEXT NOT NULL,
    clock      INTEGER NOT NULL,
    document   TEXT NOT NULL
) STRICT;

-- name: set_up_checkpoints
CREATE TABLE IF NOT EXISTS checkpoints (task TEXT PRIMARY KEY, state TEXT NOT NULL) STRICT;

-- name: append
INSERT INTO documents (collection, clock, document) VALUES (:collection, :clock, :document)

-- name: read
-- Of these collections (a JSON list) only.
SELECT number, collection, clock, document FROM documents
WHERE number > :after AND collection IN (SELECT value FROM json_each(:collections)) ORDER BY number LIMIT :limit

-- name: last_clock
SELECT max(clock) FROM documents

-- name: checkpoint
SELECT state FROM checkpoints WHERE task = :task

-- name: set_checkpoint
INSERT INTO checkpoints (task, state) VALUES (:task, :state)
ON CONFLICT (task) DO UPDATE SET state = excluded.state
