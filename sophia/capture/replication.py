"""A logical replication connection: PostgreSQL's streaming replication protocol over libpq's copy-both mode.

Invariant: the server is told exactly the positions that the caller confirms, and nothing else. A keepalive is not
answered here, and never with the server's own position: a slot that runs ahead of what the caller has stored would
have forgotten changes that nobody has.

Nothing here waits but `wait`. Source: PostgreSQL documentation, "Streaming Replication Protocol".
"""

from __future__ import annotations

import select
import struct
import time
from dataclasses import dataclass
from types import TracebackType

import psycopg
from psycopg.pq import DiagnosticField, ExecStatus

from sophia.database.connect import connect, without_password
from sophia.documents import format_lsn, parse_lsn
from sophia.errors import SourceError, TemporaryError

_IN_USE = b"55006"  # object_in_use
_UNIX_TO_PG_SECONDS = 946_684_800
_STATUS = struct.Struct(">cQQQQ?")
_DATA_HEADER = struct.Struct(">cQQq")
_KEEPALIVE = struct.Struct(">cQq?")


@dataclass(frozen=True, slots=True)
class Message:
    """One payload of the output plugin and the log position of its event."""

    lsn: int
    payload: bytes


class ReplicationConnection:
    """A connection in replication mode; a context manager that closes it.

    Attributes:
        confirmed: the position that the server was told last.
        server_lsn: how far the server has read its log and sent all that concerns us.
        reply_wanted: the server asks for a `confirm`.

    Raises:
        TemporaryError: the server does not answer or refuses; the message carries no password.
    """

    def __init__(self, url: str, application: str, options: str) -> None:
        self._shown = without_password(url)
        self._connection = connect(url, application, options=options, replication="database")
        self._pgconn = self._connection.pgconn
        self.confirmed = 0
        self.server_lsn = 0
        self.reply_wanted = False

    def __enter__(self) -> ReplicationConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def create_slot(self, slot: str, *, temporary: bool) -> tuple[int, str]:
        """Make a pgoutput slot. Returns its consistent point and the name of the snapshot just before it.

        The snapshot lasts until this connection's next command, or its end.
        """
        kind = "TEMPORARY LOGICAL" if temporary else "LOGICAL"
        row = self._connection.execute(
            f'CREATE_REPLICATION_SLOT "{slot}" {kind} pgoutput EXPORT_SNAPSHOT'.encode()
        ).fetchone()
        assert row is not None  # noqa: S101 - the command yields a row or fails
        _name, point, snapshot, _plugin = row
        return parse_lsn(point), str(snapshot)

    def start(self, slot: str, publication: str, position: int) -> None:
        """Begin to stream from `position`.

        Raises:
            SourceError: another capture uses the slot.
            psycopg.OperationalError: the server refuses, or is away.
        """
        command = (
            f'START_REPLICATION SLOT "{slot}" LOGICAL {format_lsn(position)} '
            f"(proto_version '1', publication_names '\"{publication}\"')"
        )
        result = self._pgconn.exec_(command.encode())
        if result.status != ExecStatus.COPY_BOTH:
            reason = result.error_message.decode(errors="replace").strip()
            if result.error_field(DiagnosticField.SQLSTATE) == _IN_USE:
                raise SourceError(f"slot {slot!r} is in use: another capture is running ({reason})")
            raise psycopg.OperationalError(reason)
        self._pgconn.nonblocking = 1
        self.confirmed = position

    def read(self) -> Message | None:
        """The next message, or None when none has arrived yet or the server wants a reply first.

        Raises:
            psycopg.OperationalError: the stream has ended.
        """
        while True:
            size, data = self._pgconn.get_copy_data(1)
            if size == 0:
                self._pgconn.consume_input()
                size, data = self._pgconn.get_copy_data(1)
            if size == 0:
                return None
            if size < 0:
                result = self._pgconn.get_result()
                reason = result.error_message.decode(errors="replace").strip() if result else ""
                raise psycopg.OperationalError(reason or "the server ended the stream")
            kind = data[0]
            if kind == 0x77:  # w: data
                _kind, start, end, _time = _DATA_HEADER.unpack_from(data)
                self.server_lsn = max(self.server_lsn, end)
                return Message(start, bytes(data[_DATA_HEADER.size :]))
            if kind == 0x6B:  # k: keepalive
                _kind, end, _time, reply_now = _KEEPALIVE.unpack_from(data)
                self.server_lsn = max(self.server_lsn, end)
                if reply_now:
                    # Answered by the caller: a server that stops asks again and again until all is confirmed.
                    self.reply_wanted = True
                    return None

    def confirm(self, position: int) -> None:
        """Tell the server that everything up to `position` is durable here, and that this process lives."""
        self.confirmed = max(self.confirmed, position)
        self.reply_wanted = False
        now = int((time.time() - _UNIX_TO_PG_SECONDS) * 1e6)
        self._pgconn.put_copy_data(_STATUS.pack(b"r", self.confirmed, self.confirmed, self.confirmed, now, False))
        self._flush()

    def wait(self, seconds: float) -> None:
        """Until something arrives, or the time is over."""
        select.select([self._pgconn.socket], [], [], seconds)

    def _flush(self) -> None:
        deadline = time.monotonic() + 10
        while self._pgconn.flush():
            if time.monotonic() > deadline:
                raise TemporaryError(f"{self._shown} takes no more replication messages")
            select.select([self._pgconn.socket], [self._pgconn.socket], [], 1)
            # The server may be blocked on its own sending.
            self._pgconn.consume_input()
