-- name: columns
-- Names and types of a relation's columns, in their order; no row if it is not there.
SELECT a.attname, format_type(a.atttypid, a.atttypmod)
FROM pg_attribute a
WHERE a.attrelid = to_regclass(%(name)s) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum

-- name: identity
-- What a view has beside its query: owner, options and comment.
SELECT r.rolname, COALESCE(c.reloptions, '{}'), obj_description(c.oid, 'pg_class')
FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
WHERE c.oid = to_regclass(%(name)s)

-- name: grants
-- Who may do what with a relation and with its columns, besides its owner. `grantee` is null for PUBLIC.
SELECT NULL::text AS column_name, g.rolname AS grantee, a.privilege_type, a.is_grantable
FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a LEFT JOIN pg_roles g ON g.oid = a.grantee
WHERE c.oid = to_regclass(%(name)s) AND a.grantee <> c.relowner
UNION ALL
SELECT t.attname, g.rolname, a.privilege_type, a.is_grantable
FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid AND NOT t.attisdropped
CROSS JOIN LATERAL aclexplode(t.attacl) a LEFT JOIN pg_roles g ON g.oid = a.grantee
WHERE c.oid = to_regclass(%(name)s) AND a.grantee <> c.relowner

-- name: column_comments
SELECT a.attname, d.description
FROM pg_attribute a
JOIN pg_description d ON d.classoid = 'pg_class'::regclass AND d.objoid = a.attrelid AND d.objsubid = a.attnum
WHERE a.attrelid = to_regclass(%(name)s) AND a.attnum > 0

-- name: dependents
-- What a DROP of the view would break: views that read it, functions and tables that use it or its row type.
SELECT DISTINCT CASE WHEN w.ev_class IS NOT NULL THEN pg_describe_object('pg_class'::regclass, w.ev_class, 0)
                     ELSE pg_describe_object(d.classid, d.objid, d.objsubid) END
FROM pg_class c
JOIN pg_depend d ON (d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid)
                 OR (d.refclassid = 'pg_type'::regclass AND d.refobjid = c.reltype)
LEFT JOIN pg_rewrite w ON d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid
WHERE c.oid = to_regclass(%(name)s) AND d.deptype IN ('n', 'a') AND w.ev_class IS DISTINCT FROM c.oid
ORDER BY 1

-- name: reads
-- Whether a view reads a table.
SELECT 1 FROM pg_rewrite w JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
WHERE w.ev_class = to_regclass(%(name)s) AND d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass(%(table)s)

-- name: definition
-- The embedding has no length here: versions of other dimensions follow each other under one view, whose grants,
-- dependents and prepared statements then outlive a change of the model.
SELECT key, chunk, content, content_hash, embedding::vector AS embedding, metadata, clock, lsn, {model}::text AS model,
       indexed_at, span, txid, committed_at, run, {fingerprint}::text AS fingerprint, {number}::integer AS version
FROM {table}

-- name: serves
-- Locked until commit, so that no switch comes between.
SELECT 1 FROM sophia.index_versions WHERE id = %(version_id)s AND state = 'serving' FOR SHARE

-- name: holders
-- The sessions that keep relations busy, the oldest transaction first.
SELECT a.pid, a.application_name, extract(epoch FROM clock_timestamp() - min(a.xact_start))::float8 AS seconds
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.relation = ANY(SELECT to_regclass(n) FROM unnest(%(names)s::text[]) n)
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.granted AND a.pid <> pg_backend_pid()
GROUP BY a.pid, a.application_name ORDER BY seconds DESC NULLS LAST LIMIT 5
