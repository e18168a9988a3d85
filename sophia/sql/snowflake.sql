-- name: now
SELECT CURRENT_TIMESTAMP() AS NOW

-- name: columns
-- Asked of Snowflake, as all of this file; names in braces are quoted identifiers. CREATED tells a table made anew.
SELECT C.COLUMN_NAME, C.DATA_TYPE, C.NUMERIC_PRECISION, C.NUMERIC_SCALE, T.TABLE_TYPE, TO_VARCHAR(T.CREATED) AS CREATED
FROM {database}.INFORMATION_SCHEMA.COLUMNS C
JOIN {database}.INFORMATION_SCHEMA.TABLES T ON T.TABLE_SCHEMA = C.TABLE_SCHEMA AND T.TABLE_NAME = C.TABLE_NAME
WHERE C.TABLE_SCHEMA = %(schema)s AND C.TABLE_NAME = %(table)s ORDER BY C.ORDINAL_POSITION

-- name: primary_key
SHOW PRIMARY KEYS IN TABLE {table}

-- name: read_all
SELECT {columns} FROM {table} ORDER BY {cursor} NULLS FIRST

-- name: read_since
SELECT {columns} FROM {table} WHERE {cursor} >= %(low)s::{type} ORDER BY {cursor}

-- name: read_keys
SELECT {columns} FROM {table} WHERE {wanted}

-- name: compare
SELECT {columns} FROM {table}

-- name: create_schema
CREATE SCHEMA IF NOT EXISTS {schema}

-- name: create_control
-- What numbers the batches of each stream, and who may take them: a capture that was succeeded finds a higher epoch.
CREATE TABLE IF NOT EXISTS {control} (NAME VARCHAR, EPOCH NUMBER(38, 0), SEQ NUMBER(38, 0))

-- name: add_control
INSERT INTO {control} (NAME, EPOCH, SEQ) SELECT %(name)s, %(epoch)s, 0
WHERE NOT EXISTS (SELECT 1 FROM {control} WHERE NAME = %(name)s)

-- name: take_control
UPDATE {control} SET EPOCH = %(epoch)s WHERE NAME = %(name)s AND EPOCH <= %(epoch)s

-- name: drop_control
DELETE FROM {control} WHERE NAME = %(name)s

-- name: create_staging
CREATE TRANSIENT TABLE IF NOT EXISTS {staging} AS
SELECT 0::NUMBER(38, 0) AS SOPHIA_SEQ, 0::NUMBER(38, 0) AS SOPHIA_OFF, ''::VARCHAR AS SOPHIA_ACTION,
       FALSE AS SOPHIA_ISUPDATE, ''::VARCHAR AS SOPHIA_ROW_ID, {columns}
FROM {table} WHERE 1 = 0

-- name: create_stream
CREATE STREAM IF NOT EXISTS {stream} ON TABLE {table}

-- name: show_stream
SHOW STREAMS LIKE '{name}' IN SCHEMA {schema}

-- name: drop_stream
DROP STREAM IF EXISTS {stream}

-- name: drop_staging
DROP TABLE IF EXISTS {staging}

-- name: snapshot
-- The table as it was at the stream's offset: what the stream brings later joins on without a gap.
SELECT {columns} FROM {table} AT(STREAM => '{stream}') {where} ORDER BY {keys}

-- name: has_data
-- Needs no warehouse.
SELECT SYSTEM$STREAM_HAS_DATA('{stream}') AS HAS_DATA

-- name: next_seq
UPDATE {control} SET SEQ = SEQ + 1 WHERE NAME = %(name)s AND EPOCH = %(epoch)s

-- name: stage
-- Reading a stream in a statement that writes moves its offset when the transaction commits.
INSERT INTO {staging} (SOPHIA_SEQ, SOPHIA_OFF, SOPHIA_ACTION, SOPHIA_ISUPDATE, SOPHIA_ROW_ID, {columns})
SELECT (SELECT MAX(SEQ) FROM {control} WHERE NAME = %(name)s),
       ROW_NUMBER() OVER (ORDER BY METADATA$ROW_ID, METADATA$ACTION) - 1,
       METADATA$ACTION, METADATA$ISUPDATE, METADATA$ROW_ID, {columns}
FROM {stream}

-- name: staged
SELECT SOPHIA_SEQ, SOPHIA_OFF, SOPHIA_ACTION, SOPHIA_ISUPDATE, SOPHIA_ROW_ID, {columns} FROM {staging}
WHERE SOPHIA_SEQ > %(seq)s OR (SOPHIA_SEQ = %(seq)s AND SOPHIA_OFF > %(off)s) ORDER BY SOPHIA_SEQ, SOPHIA_OFF

-- name: clear
DELETE FROM {staging} WHERE SOPHIA_SEQ <= %(seq)s
