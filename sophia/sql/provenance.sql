-- name: register
INSERT INTO sophia.runs (run, kind, code, image, host)
VALUES (%(run)s, %(kind)s, %(code)s, %(image)s, %(host)s) ON CONFLICT (run) DO NOTHING

-- name: note_backend
-- Once a run, model and backend; nothing for a run that nobody registered.
UPDATE sophia.runs
SET backends = jsonb_set(backends, ARRAY[%(model)s::text],
                         COALESCE(backends -> %(model)s::text, '[]') || to_jsonb(%(backend)s::text))
WHERE run = %(run)s AND NOT COALESCE(backends -> %(model)s::text, '[]') ? %(backend)s::text

-- name: lock_probes
-- Until the end of the transaction: of two backends that come at once, the second finds what the first stored.
SELECT pg_advisory_xact_lock(hashtextextended('model_probes/' || %(model)s::text, 0))

-- name: probes
SELECT backend, vectors FROM sophia.model_probes
WHERE model_fingerprint = %(model)s AND probes = %(probes)s ORDER BY created_at, backend

-- name: store_probe
-- The first vectors stay, so that a backend is compared with itself, too; of other texts, they are replaced.
INSERT INTO sophia.model_probes AS p (model_fingerprint, backend, probes, vectors)
VALUES (%(model)s, %(backend)s, %(probes)s, %(vectors)s)
ON CONFLICT (model_fingerprint, backend) DO UPDATE
SET probes = EXCLUDED.probes, vectors = EXCLUDED.vectors, created_at = now() WHERE p.probes <> EXCLUDED.probes
