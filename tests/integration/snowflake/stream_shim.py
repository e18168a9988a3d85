"""A shim, and no Snowflake: adds streams to fakesnow, which knows none, by comparing a table with a shadow of it.

It stands before fakesnow's HTTP server, so that the real connector speaks to it, and takes over the statements that
name streams. The shadow of a stream is the table as it was at the stream's offset, with DuckDB's rowid; what differs is
the stream's content. Reading it in an INSERT moves the shadow in the same transaction, so that a rollback moves it
back.

What is not like Snowflake: a row whose indexed columns are updated becomes another row (a DELETE and an INSERT that are
no update), SHOW STREAMS has only the columns that are read, and CREATED is the number that DuckDB gives a new table.

It also answers statements or sign-ins with errors that a test asks for, and holds statements back.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import duckdb
import fakesnow.server
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

_NAME = r'"[^"]+"\."[^"]+"\."[^"]+"'
_CREATE = re.compile(rf"CREATE STREAM IF NOT EXISTS ({_NAME}) ON TABLE ({_NAME})")
_DROP = re.compile(rf"DROP STREAM IF EXISTS ({_NAME})")
_SHOW = re.compile(r"SHOW STREAMS LIKE '([^']+)' IN SCHEMA (\"[^\"]+\"\.\"[^\"]+\")")
_HAS_DATA = re.compile(rf"SELECT SYSTEM\$STREAM_HAS_DATA\('({_NAME})'\) AS HAS_DATA")
_AT = re.compile(rf"{_NAME} AT\(STREAM => '({_NAME})'\)")
_FROM = re.compile(rf"FROM ({_NAME})\s*$")
_CREATED = re.compile(r"C\.TABLE_SCHEMA = '([^']+)' AND C\.TABLE_NAME = '([^']+)'")


@dataclass
class Fault:
    """An answer that a test asks for, to the statement (or sign-in) that the pattern finds; `times` of them."""

    pattern: str
    code: str
    message: str
    state: str = "42000"
    times: int = 1


@dataclass
class StreamShim:
    """The ASGI application. Streams by their quoted names; a test may mark one stale, or forget it."""

    tables: dict[str, str] = field(default_factory=dict)
    stale: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    hooks: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    sign_ins: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in ("/queries/v1/query-request", "/session/v1/login-request"):
            await fakesnow.server.app(scope, receive, send)
            return
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        content = json.loads(gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body)
        login = scope["path"].endswith("login-request")
        statement = "login" if login else content["sqlText"]
        self.statements.append(statement)
        if login:
            self.sign_ins.append(content["data"])
        fault = self._fault(statement)
        if fault is not None:
            data = {"errorCode": fault.code, "sqlState": fault.state}
            answer = {"success": False, "code": fault.code, "message": fault.message, "data": data}
            await JSONResponse(answer)(scope, receive, send)
            return
        for pattern, hook in self.hooks:
            if re.search(pattern, statement):
                await run_in_threadpool(hook)
        if not login:
            connection = fakesnow.server.sessions[headers["authorization"][17:-1]]
            try:
                content["sqlText"] = await run_in_threadpool(self._rewritten, connection._duck_conn, statement)
            except duckdb.Error as error:
                # A table that lacks what the stream had: Snowflake's "invalid identifier".
                refused = {"success": False, "code": "000904", "message": str(error), "data": {"sqlState": "42000"}}
                await JSONResponse(refused)(scope, receive, send)
                return
        text = json.dumps(content).encode()
        kept = [(n, v) for n, v in scope["headers"] if n.lower() not in (b"content-encoding", b"content-length")]
        scope = dict(scope, headers=[*kept, (b"content-length", str(len(text)).encode())])

        async def replay() -> Message:
            return {"type": "http.request", "body": text, "more_body": False}

        await fakesnow.server.app(scope, replay, send)

    def _fault(self, statement: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.pattern, statement):
                fault.times -= 1
                return fault
        return None

    def _rewritten(self, duck: Any, text: str) -> str:
        """The statement for fakesnow, once the stream's part in it is done."""
        if match := _CREATE.search(text):
            stream, table = match.groups()
            if stream not in self.tables:
                duck.execute(f'CREATE TABLE {_shadow(stream)} AS SELECT rowid AS "SHIM$ROW", * FROM {table}')
                self.tables[stream] = table
            return "SELECT 'done' AS STATUS"
        if match := _DROP.search(text):
            if self.tables.pop(match[1], None):
                duck.execute(f"DROP TABLE IF EXISTS {_shadow(match[1])}")
            return "SELECT 'done' AS STATUS"
        if match := _SHOW.search(text):
            stream = f'{match[2]}."{match[1]}"'
            stale = str(stream in self.stale).lower()
            found = "" if stream in self.tables else " WHERE 1 = 0"
            return f"""SELECT '{match[1]}' AS "name", '{stale}' AS "stale" {found}"""
        if match := _HAS_DATA.search(text):
            count = duck.execute(
                f"SELECT count(*) FROM ({self._difference(match[1], _columns(duck, self.tables[match[1]]))})"
            )
            return f"SELECT {count.fetchone()[0] > 0} AS HAS_DATA"
        if "TO_VARCHAR(T.CREATED)" in text and (match := _CREATED.search(text)):
            number = duck.execute(
                "SELECT max(table_oid) FROM duckdb_tables() WHERE schema_name = ? AND table_name = ? "
                "AND database_name = current_database()",
                [match[1], match[2]],
            ).fetchone()[0]
            return text.replace("TO_VARCHAR(T.CREATED)", f"'{number}'")
        if "METADATA$ACTION" in text and (match := _FROM.search(text)):
            return self._consumed(duck, match[1], text)
        return _AT.sub(lambda found: _shadow(found[1]), text)

    def _consumed(self, duck: Any, stream: str, text: str) -> str:
        """An INSERT that reads the stream: reads its content of now, and moves the offset in the same transaction."""
        table = self.tables[stream]
        columns = _columns(duck, table)
        content = stream[:-1] + '_CONTENT"'
        duck.execute(f"CREATE OR REPLACE TABLE {content} AS {self._difference(stream, columns)}")
        duck.execute(f"DELETE FROM {_shadow(stream)}")
        duck.execute(f"INSERT INTO {_shadow(stream)} SELECT rowid, * FROM {table}")
        return re.sub(r"METADATA\$\w+", lambda found: f'"{found[0]}"', _FROM.sub(lambda _: f"FROM {content}", text))

    def _difference(self, stream: str, columns: str) -> str:
        then = f'SELECT "SHIM$ROW", {columns} FROM {_shadow(stream)}'
        now = f"SELECT rowid, {columns} FROM {self.tables[stream]}"
        row = 'md5("SHIM$ROW"::VARCHAR)'
        return (
            f"WITH gone AS ({then} EXCEPT {now}), "
            f'come AS (SELECT * FROM ({now} EXCEPT {then}) AS c("SHIM$ROW", {columns})) '
            f"""SELECT {columns}, 'DELETE' AS "METADATA$ACTION", "SHIM$ROW" IN (SELECT "SHIM$ROW" FROM come) """
            f"""AS "METADATA$ISUPDATE", {row} AS "METADATA$ROW_ID" FROM gone UNION ALL """
            f"""SELECT {columns}, 'INSERT', "SHIM$ROW" IN (SELECT "SHIM$ROW" FROM gone), {row} FROM come"""
        )


def _shadow(stream: str) -> str:
    return stream[:-1] + '_SHADOW"'


def _columns(duck: Any, table: str) -> str:
    return ", ".join(f'"{row[0]}"' for row in duck.execute(f"DESCRIBE {table}").fetchall())
