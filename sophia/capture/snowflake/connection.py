"""Sessions with Snowflake: where it is, who we are, statements in bounded memory.

Invariants:

* No secret, no statement and no value of a row gets into a log or an error: the connector's own loggers are shut, and
  every error goes through `sophia.capture.snowflake.faults`.
* A result is fetched in batches; the connector holds one chunk of it (at most 16 MB) in advance.
* Nothing is asked of anyone but the account's host: no telemetry, no look at the cloud around.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from sophia.capture.snowflake.faults import explain, explain_sign_in
from sophia.errors import ConfigurationError
from sophia.settings import SnowflakeSettings

_OPTIONS = ("warehouse", "role", "host", "port", "protocol")
_URL_FORM = "snowflake://USER[:PASSWORD]@ACCOUNT/DATABASE?warehouse=…&role=…"


@dataclass(frozen=True, slots=True)
class Account:
    """Where a source is and who we are there. What is secret is no part of its repr.

    Attributes:
        options: warehouse, role; host, port and protocol where they are not those of the account.
        private_key: DER of a PKCS8 key, or None with a password.
    """

    account: str
    database: str
    user: str
    options: Mapping[str, str]
    password: str | None = field(default=None, repr=False)
    private_key: bytes | None = field(default=None, repr=False)

    @property
    def identity(self) -> str:
        """Of which account and database positions are kept."""
        return f"{self.account}/{self.database}"


def parse_account(url: str, private_key: str | None = None, passphrase: str | None = None) -> Account:
    """Read a source's URL and key.

    Args:
        private_key: PKCS8 PEM, its lines separated by newlines or by `\\n`; or the path of a file that has it.

    Raises:
        ConfigurationError: the URL has another form, or the key cannot be read. It says neither.
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    database, _, rest = unquote(parts.path).strip("/").partition("/")
    if parts.scheme != "snowflake" or not parts.hostname or not parts.username or not database or rest:
        raise ConfigurationError(f"the URL of a Snowflake source is {_URL_FORM}")
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise ConfigurationError(f"the URL of a Snowflake source knows no {unknown[0]!r}; it is {_URL_FORM}")
    password = unquote(parts.password) if parts.password else None
    if (password is None) == (private_key is None):
        raise ConfigurationError("a Snowflake source needs a password in its URL or a private key, and not both")
    return Account(
        parts.hostname.removesuffix(".snowflakecomputing.com"),
        database if database.startswith('"') else database.upper(),
        unquote(parts.username),
        options,
        password,
        None if private_key is None else _key(private_key, passphrase),
    )


def _key(text: str, passphrase: str | None) -> bytes:
    from cryptography.hazmat.primitives import serialization

    pem = text.replace("\\n", "\n")
    try:
        if not pem.lstrip().startswith("-----BEGIN"):
            pem = Path(text).expanduser().read_text(encoding="ascii")
        key = serialization.load_pem_private_key(pem.encode(), passphrase.encode() if passphrase else None)
        return key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    except (ValueError, TypeError, OSError):
        # None of these errors is named: a text that is no path would stand in it.
        raise ConfigurationError(
            "the private key of a Snowflake source cannot be read; it is PKCS8 in PEM or the path of such a file, and "
            "an encrypted one needs its passphrase (passphrase_env in sources.yaml)"
        ) from None


@dataclass(frozen=True, slots=True)
class ResultColumn:
    """A column of a result; `code` is the connector's type code."""

    name: str
    code: int
    scale: int | None


@dataclass(slots=True)
class Rows:
    """A result that is read in batches."""

    columns: tuple[ResultColumn, ...]
    _batches: Iterator[list[tuple[Any, ...]]]

    def __iter__(self) -> Iterator[list[tuple[Any, ...]]]:
        return self._batches


class Session:
    """A session, opened at the first statement. For one thread.

    Each method raises TemporaryError when Snowflake is away or the session has ended, ConfigurationError or SourceError
    for what a person must mend.
    """

    def __init__(self, source: str, account: Account, settings: SnowflakeSettings) -> None:
        self._source = source
        self._account = account
        self._settings = settings
        self._connection: Any = None

    @property
    def database(self) -> str:
        """The database of the source's tables."""
        return self._account.database

    def close(self) -> None:
        """End the session; a later statement begins another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # Snowflake forgets a session that it cannot be told of.
            with contextlib.suppress(Exception):
                connection.close(retry=False)

    def query(self, what: str, text: str, values: Mapping[str, Any] | None = None, batch: int | None = None) -> Rows:
        """Run a statement and read its result in batches.

        Args:
            what: what it is about, for an error.
            batch: rows of a batch; `SOPHIA_SNOWFLAKE__BATCH_DOCUMENTS` if unset.
        """
        cursor = self._execute(what, text, values)
        columns = tuple(ResultColumn(column.name, column.type_code, column.scale) for column in cursor.description)
        return Rows(columns, self._fetch(what, cursor, batch or self._settings.batch_documents))

    def rows(self, what: str, text: str, values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """A small result whole: values by column, whose names are given in small letters (Snowflake's vary)."""
        found = self.query(what, text, values)
        names = [column.name.lower() for column in found.columns]
        return [dict(zip(names, row, strict=True)) for batch in found for row in batch]

    def execute(self, what: str, text: str, values: Mapping[str, Any] | None = None) -> int:
        """Run a statement. Returns the number of rows that it changed."""
        with contextlib.closing(self._execute(what, text, values)) as cursor:
            return int(cursor.rowcount or 0)

    @contextlib.contextmanager
    def transaction(self, what: str) -> Iterator[None]:
        """A transaction; statements that define something would end it."""
        self.execute(what, "BEGIN")
        try:
            yield
            self.execute(what, "COMMIT")
        except BaseException:
            with contextlib.suppress(Exception):
                self.execute(what, "ROLLBACK")
            raise

    def _execute(self, what: str, text: str, values: Mapping[str, Any] | None) -> Any:
        from snowflake.connector.errors import Error

        connection = self._open()
        cursor = connection.cursor()
        try:
            return cursor.execute(text, dict(values) if values else None)
        except Error as error:
            raise explain(self._source, what, error) from None

    def _fetch(self, what: str, cursor: Any, size: int) -> Iterator[list[tuple[Any, ...]]]:
        from snowflake.connector.errors import Error

        with contextlib.closing(cursor):
            while True:
                try:
                    batch = cursor.fetchmany(size)
                except Error as error:
                    raise explain(self._source, what, error) from None
                if not batch:
                    return
                yield batch

    def _open(self) -> Any:
        if self._connection is not None:
            return self._connection
        import snowflake.connector

        for name in ("snowflake.connector", "boto3", "botocore"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        account, settings = self._account, self._settings
        secret: dict[str, Any] = {"password": account.password}
        if account.private_key is not None:
            secret = {"private_key": account.private_key, "authenticator": "SNOWFLAKE_JWT"}
        try:
            self._connection = snowflake.connector.connect(
                account=account.account,
                user=account.user,
                database=account.database,
                **secret,
                **account.options,
                application="Sophia",
                autocommit=True,
                login_timeout=int(settings.login_seconds),
                # The server ends a statement by itself; this is for one that it does not answer at all.
                network_timeout=settings.statement_seconds + 60,
                client_prefetch_threads=1,
                client_session_keep_alive=False,
                platform_detection_timeout_seconds=0,
                session_parameters={
                    "CLIENT_TELEMETRY_ENABLED": False,
                    "CLIENT_RESULT_CHUNK_SIZE": 16,
                    "QUERY_TAG": "sophia",
                    "STATEMENT_TIMEOUT_IN_SECONDS": settings.statement_seconds,
                    # Values without a zone are meant as UTC, as in Estuary's documents.
                    "TIMEZONE": "UTC",
                },
            )
        except snowflake.connector.errors.Error as error:
            raise explain_sign_in(self._source, error) from None
        return self._connection


def quoted(*names: str) -> str:
    """An identifier, qualified by those before it. A name that begins with a quote is quoted already."""
    return ".".join(name if name.startswith('"') else '"' + name.replace('"', '""') + '"' for name in names)
