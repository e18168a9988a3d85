-- name: server
-- The identity of the server and where its log stands. A standby cannot be captured from.
SELECT system_identifier::text, pg_is_in_recovery(), current_setting('wal_level'),
       current_setting('server_encoding'), current_database(),
       CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_lsn()::text END
FROM pg_control_system()

-- name: table
-- One table: its oid, kind, replica identity, and the columns of its primary key and replica identity index.
SELECT c.oid::bigint, c.relkind, c.relreplident, n.nspname, c.relname,
       ARRAY(SELECT a.attname::text FROM pg_index i
             CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, n)
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
             WHERE i.indrelid = c.oid AND i.indisprimary ORDER BY k.n),
       ARRAY(SELECT a.attname::text FROM pg_index i
             CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, n)
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
             WHERE i.indrelid = c.oid AND i.indisreplident ORDER BY k.n),
       has_table_privilege(c.oid, 'SELECT'), row_security_active(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass(%(table)s)

-- name: columns
SELECT attname::text, atttypid::bigint FROM pg_attribute
WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum

-- name: shape
-- What documents of a table look like and how its keys are ordered: columns, types, collations, the key.
SELECT string_agg(format('%%s %%I %%s %%s', attnum, attname, format_type(atttypid, NULL), attcollation), ', ' ORDER BY attnum)
       || ' key ' || array_to_string(%(key)s::text[], ', ')
FROM pg_attribute WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped AND attgenerated = ''

-- name: restricted
-- Tables of which a publication leaves out rows or columns (a server before PostgreSQL 15 knows neither).
SELECT r.prrelid::bigint, to_jsonb(r) ->> 'prqual' IS NOT NULL, to_jsonb(r) ->> 'prattrs' IS NOT NULL
FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
WHERE p.pubname = %(publication)s AND (to_jsonb(r) ->> 'prqual' IS NOT NULL OR to_jsonb(r) ->> 'prattrs' IS NOT NULL)

-- name: publication_tables
SELECT format('%%I.%%I', schemaname, tablename) FROM pg_publication_tables WHERE pubname = %(publication)s

-- name: publication
-- Whether partitions are published as their root, and the kinds of change that are left out.
SELECT pubviaroot, array_remove(ARRAY[CASE WHEN NOT pubinsert THEN 'insert' END, CASE WHEN NOT pubupdate THEN 'update' END,
                                      CASE WHEN NOT pubdelete THEN 'delete' END, CASE WHEN NOT pubtruncate THEN 'truncate' END], NULL)
FROM pg_publication WHERE pubname = %(publication)s

-- name: slot
-- `safe_wal_size`: how much may still be written before the slot is lost; NULL without such a limit.
SELECT plugin, slot_type, database, active_pid, confirmed_flush_lsn::text, COALESCE(wal_status, 'reserved'),
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END,
                       restart_lsn)::bigint, safe_wal_size
FROM pg_replication_slots WHERE slot_name = %(slot)s

-- name: keep_size
SELECT current_setting('max_slot_wal_keep_size')

-- name: estimate
SELECT GREATEST(reltuples, 0)::bigint FROM pg_class WHERE oid = %(oid)s
