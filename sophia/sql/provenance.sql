-- name: register
INSERT INTO sophia.runs (run, kind, code, image, host)
VALUES (%(run)s, %(kind)s, %(code)s, %(image)s, %(host)s) ON CONFLICT (run) DO NOTHING
