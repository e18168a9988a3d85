-- name: sample_rows
SELECT (SELECT count(*) FROM public.documents) + (SELECT count(*) FROM public.conversations)
     + (SELECT count(*) FROM public.business_metrics)

-- name: documents
SELECT count(*) FROM sophia.documents WHERE NOT deleted

-- name: captured
SELECT count(*) FROM sophia.captured_tables WHERE complete

-- name: last_batch
SELECT COALESCE(max(id), 0) FROM sophia.batches

-- name: indexed
-- Documents that serving versions have, of those that they should have.
SELECT (SELECT count(*) FROM sophia.ledger l JOIN sophia.index_versions v ON v.id = l.version_id
        WHERE v.state = 'serving' AND NOT l.deleted),
       (SELECT count(*) FROM sophia.documents d JOIN sophia.index_versions v ON v.collection_id = d.collection_id
        WHERE v.state = 'serving' AND NOT d.deleted)

-- name: bulk_figures
SELECT COALESCE(sum(documents), 0)::int, COALESCE(sum(embedded), 0)::int, COALESCE(sum(tokens), 0)::int,
       COALESCE(sum(embed_ms), 0) / 1000.0
FROM sophia.batches WHERE id > %(since)s AND lane = 'bulk'

-- name: clean
DELETE FROM public.documents WHERE id BETWEEN %(first)s AND %(last)s

-- name: insert
INSERT INTO public.documents (id, name, module, kind, title, body)
VALUES (%(id)s, 'demo', 'demo', 'demo', 'demo', %(body)s)

-- name: update
UPDATE public.documents SET body = %(body)s, updated_at = now() WHERE id = %(id)s

-- name: delete
DELETE FROM public.documents WHERE id = %(id)s
