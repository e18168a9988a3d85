-- name: estuary_columns
-- Columns of a table as Estuary's source-postgres discovers them. A domain goes by its base type; `atttypmod - 4` is
-- the declared length of char(n) and varchar(n). Columns that are generated are not in the stream.
SELECT a.attname::text,
       CASE WHEN e.oid IS NOT NULL THEN e.typname::text ELSE b.typname::text END,
       t.typtype::text,
       e.oid IS NOT NULL,
       NOT (a.attnotnull OR (t.typtype = 'd' AND t.typnotnull)),
       CASE WHEN coalesce(e.typname, b.typname) IN ('bpchar', 'varchar') AND a.atttypmod > 4 THEN a.atttypmod - 4 END,
       col_description(a.attrelid, a.attnum)
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
JOIN pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
LEFT JOIN pg_type e ON e.oid = b.typelem AND b.typcategory = 'A'
WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY a.attnum
