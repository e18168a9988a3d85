"""Snowflake without Snowflake: values, documents, clocks, URLs and keys, pairs of a stream, and what errors mean."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from sophia.capture.snowflake.connection import ResultColumn, parse_account, quoted
from sophia.capture.snowflake.documents import Place, Reader, changes_of, document, small
from sophia.capture.snowflake.faults import explain, explain_sign_in
from sophia.capture.snowflake.rows import next_clock, position_of
from sophia.capture.snowflake.streams import Staged, paired
from sophia.capture.snowflake.values import converter
from sophia.catalog.models import SnowflakeTable
from sophia.documents import Clock, canonical_key
from sophia.errors import ConfigurationError, DocumentError, SourceError, TemporaryError

URL = "snowflake://loader:pa%40ss@example-account/sophia_ai?warehouse=LOADING&role=LOADER"
TABLE = Place("PUBLIC", "T", 2, 0)
NAIVE = datetime.fromisoformat("1991-08-31 09:25:27")
LAST = datetime.fromisoformat("9999-12-31 23:59:59.999999")


# ---- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "value", "expected"),
    [
        (0, 6, 6),
        (0, 2**63 - 1, 2**63 - 1),
        (0, 10**37, "1" + "0" * 37),
        (0, -(10**37), "-1" + "0" * 37),
        (0, Decimal("-0.99"), -0.99),
        (0, Decimal("2.00"), 2),
        (0, Decimal("12345678901234567890.12"), "12345678901234567890.12"),
        (0, Decimal("10000000000000000000000.00"), "1" + "0" * 22),
        (1, 0.00001, 0.00001),
        (1, float("nan"), "NaN"),
        (1, float("-inf"), "-Infinity"),
        (2, "    ", "    "),
        (3, date(1991, 8, 31), "1991-08-31T00:00:00Z"),
        (12, time(9, 25, 27), "0001-01-01T09:25:27Z"),
        (12, time(9, 25, 27, 500_000), "0001-01-01T09:25:27.5Z"),
        (8, NAIVE, "1991-08-31T09:25:27Z"),
        (8, LAST, "9999-12-31T23:59:59.999999Z"),
        (7, datetime(2020, 1, 2, 3, 4, 5, 120, tzinfo=timezone(timedelta(hours=2))), "2020-01-02T03:04:05.00012+02:00"),
        (6, datetime(2020, 1, 2, tzinfo=UTC), "2020-01-02T00:00:00Z"),
        (11, bytearray(b"\xee\x5a\x11\xa5"), "7loRpQ=="),
        (13, True, True),
        (5, '{"a": [1, null]}', {"a": [1, None]}),
        (5, '"text"', "text"),
        (10, "[\n  1,\n  undefined\n]", "[\n  1,\n  undefined\n]"),
        (5, "NaN", "NaN"),
        (5, r'"\\u0000"', r"\u0000"),
        (16, [1.0, 2.0], [1.0, 2.0]),
    ],
)
def test_values_are_those_of_estuary(code: int, value: Any, expected: Any) -> None:
    found = converter(ResultColumn("X", code, None))(value)
    assert found == expected
    assert type(found) is type(expected)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(("code", "value"), [(2, "a\0b"), (5, '{"a": "\\u0000"}'), (5, '{"\\u0000": 1}')])
def test_a_nul_character_is_refused_without_the_text(code: int, value: str) -> None:
    reader = Reader([ResultColumn("ID", 0, 0), ResultColumn("BODY", code, None)])
    with pytest.raises(DocumentError, match=r"column 'BODY': .*NUL"):
        reader.row((1, value))
    assert reader.key_row((1, value), ("ID",)) == {"ID": 1}


# ---- documents -----------------------------------------------------------------------------------------------------


def test_documents_are_those_of_estuary() -> None:
    """The lines are from the snapshots of Estuary's own tests, with our table's name."""
    assert json.dumps(document("c", {"ID": 6, "DATA": "F"}, TABLE), separators=(",", ":")) == (
        '{"DATA":"F","ID":6,"_meta":{"op":"c","source":{"schema":"PUBLIC","table":"T","seq":2,"off":0}}}'
    )
    first = document("c", {"ID": 0}, Place("PUBLIC", "T", 0, 0), snapshot=True)
    assert json.dumps(first, separators=(",", ":")) == (
        '{"ID":0,"_meta":{"op":"c","source":{"schema":"PUBLIC","snapshot":true,"table":"T","seq":0,"off":0}}}'
    )
    update = document("u", {"ID": 1, "DATA": "b"}, TABLE, {"ID": 1, "DATA": "a"})
    assert update["_meta"]["before"] == {"ID": 1, "DATA": "a"}


def test_names_in_capitals_become_small_and_others_stay() -> None:
    assert [small(name) for name in ("METRIC", "UPDATED_AT", "Mixed", "small", "A1")] == [
        *("metric", "updated_at", "Mixed", "small", "a1"),
    ]
    (change,) = changes_of(document("c", {"ID": 1, "Mixed": 2}, TABLE), ("id",), Clock(1, 2, 1), Clock(1, 2, 0))
    assert (change.key, change.body) == ("[1]", {"id": 1, "Mixed": 2})
    assert change.complete
    assert change.origin.lsn is None


def test_a_moved_key_is_a_delete_below_every_upsert_of_its_batch() -> None:
    moved = document("u", {"ID": 5}, TABLE, {"ID": 1})
    delete, upsert = changes_of(moved, ("id",), Clock(1, 2, 8), Clock(1, 2, 0))
    assert (delete.key, delete.op, delete.clock, delete.body) == ("[1]", "d", (1, 2, 0), None)
    assert (upsert.key, upsert.op, upsert.clock) == ("[5]", "u", (1, 2, 8))


def test_a_column_named_meta_hides_nothing() -> None:
    assert document("c", {"ID": 1, "_meta": "x"}, TABLE)["_meta"]["op"] == "c"


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["c", "d", "u", "half"])), max_size=12))
def test_pairs_are_taken_together_and_nothing_else(rows: list[tuple[int, str]]) -> None:
    staged: list[tuple[Any, ...]] = []
    expected: list[Staged] = []
    for number, (value, kind) in enumerate(rows):
        name, off = f"row {number}", len(staged)
        if kind in ("d", "u", "half"):
            staged.append((1, off, "DELETE", kind != "d", name, number, value))
        if kind in ("c", "u"):
            staged.append((1, len(staged), "INSERT", kind != "c", name, number, value + 1))
        last = len(staged) - 1
        match kind:
            case "u":
                expected.append(Staged(1, last, "u", (number, value + 1), (number, value)))
            case "c":
                expected.append(Staged(1, last, "c", (number, value + 1)))
            case _:
                expected.append(Staged(1, last, "d", (number, value)))
    assert list(paired(iter(staged))) == expected


# ---- clocks --------------------------------------------------------------------------------------------------------

clocks = st.builds(Clock, st.integers(1, 3), st.integers(0, 5), st.integers(0, 5))


@given(st.integers(1, 3), st.integers(0, 5), st.none() | clocks)
def test_what_was_read_later_outranks_what_is_stored(generation: int, position: int, stored: Clock | None) -> None:
    clock = next_clock(generation, position, stored)
    assert clock >= Clock(generation, position, 0)
    if stored is not None:
        assert clock > stored
        # And nothing that a later look at a higher cursor brings.
        assert clock < Clock(max(generation, stored.generation), max(position, stored.position) + 1, 0)


def test_positions_are_microseconds_or_numbers() -> None:
    assert position_of(datetime.fromisoformat("1970-01-01 00:00:01.000005")) == 1_000_005
    assert position_of(datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == 253_402_300_799_999_999
    assert position_of(date(1970, 1, 2)) == 86_400_000_000
    assert position_of(Decimal("7.9")) == 7
    assert position_of(10**30) == 2**63 - 1
    unusable = (None, -5, float("nan"), datetime.fromisoformat("1960-01-01"), "text")
    assert [position_of(value) for value in unusable] == [0] * 5


# ---- URL and key -----------------------------------------------------------------------------------------------------


def test_the_url_names_account_user_and_database() -> None:
    account = parse_account(URL)
    assert (account.account, account.user, account.database) == ("example-account", "loader", "SOPHIA_AI")
    assert account.password == "pa@ss"
    assert account.options == {"warehouse": "LOADING", "role": "LOADER"}
    assert "pa@ss" not in repr(account)
    assert parse_account(URL.replace("account/", "account.snowflakecomputing.com/")).account == "example-account"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hidden@example.com/db",
        "snowflake://example-account/db",
        "snowflake://u:hidden@example-account",
        "snowflake://u:hidden@example-account/db/public",
        "snowflake://u:hidden@example-account/db?authenticator=hidden",
        "snowflake://u@example-account/db",
    ],
)
def test_another_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_account(url)
    assert "hidden" not in str(caught.value)


def _pem(passphrase: str | None = None) -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    how: Any = serialization.NoEncryption()
    if passphrase:
        how = serialization.BestAvailableEncryption(passphrase.encode())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how).decode()


def test_a_key_is_pem_or_a_file_with_or_without_a_passphrase(tmp_path: Path) -> None:
    url, pem = "snowflake://loader@example-account/db", _pem()
    file = tmp_path / "key.p8"
    file.write_text(pem)
    keys = [parse_account(url, text).private_key for text in (pem, pem.replace("\n", "\\n"), str(file))]
    assert len(set(keys)) == 1
    assert keys[0] is not None
    assert parse_account(url, _pem("open"), "open").private_key
    for text, phrase in ((_pem("open"), None), (_pem("open"), "wrong"), ("hidden", None), ("-----BEGIN hidden", None)):
        with pytest.raises(ConfigurationError, match="passphrase_env") as caught:
            parse_account(url, text, phrase)
        assert "hidden" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="not both"):
        parse_account(URL, pem)


def test_identifiers_are_quoted() -> None:
    assert quoted("DB", 'a"b', "T") == '"DB"."a""b"."T"'


def test_a_cursor_capture_names_its_column() -> None:
    with pytest.raises(ValueError, match="cursor names no column"):
        SnowflakeTable(method="cursor")


# ---- errors ----------------------------------------------------------------------------------------------------------


class ProgrammingError(Exception):
    """As the connector's: the name is what counts."""

    def __init__(self, message: str, errno: int | None = None, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.errno, self.sqlstate, self.sfqid = errno, sqlstate, "01b2-query"


class OperationalError(ProgrammingError):
    """A server that is away."""


@pytest.mark.parametrize(
    ("error", "kind", "fix"),
    [
        (ProgrammingError("secret", 2003, "42S02"), SourceError, "GRANT SELECT ON TABLE"),
        (ProgrammingError("secret", 3001, "42501"), SourceError, "docs/snowflake.md"),
        (ProgrammingError("secret", 904, "42000"), SourceError, "column is gone"),
        (ProgrammingError("secret", 606, "57P03"), ConfigurationError, "warehouse="),
        (ProgrammingError("Warehouse 'secret' is suspended", 90064, "22000"), TemporaryError, "AUTO_RESUME"),
        (ProgrammingError("exceeded resource monitor secret", 90073, "22000"), TemporaryError, "quota"),
        (ProgrammingError("secret", 630, "57014"), TemporaryError, "STATEMENT_SECONDS"),
        (ProgrammingError("secret", 390112, "08001"), TemporaryError, "signing in again"),
        (ProgrammingError("Time travel data is not available for secret", 707, "02000"), TemporaryError, "RETENTION"),
        (ProgrammingError("Numeric value 'secret' is not recognized", 100038, "22018"), SourceError, "01b2-query"),
        (OperationalError("secret", 250003, "08001"), TemporaryError, "does not answer"),
        (OperationalError("secret"), TemporaryError, "query 01b2-query"),
    ],
)  # fmt: skip
def test_errors_of_statements_say_the_fix_and_no_value(error: Exception, kind: type[Exception], fix: str) -> None:
    found = explain("snow", "table PUBLIC.T", error)
    assert type(found) is kind
    assert fix in str(found)
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    ("message", "kind", "fix"),
    [
        ("Incorrect username or password was specified.", ConfigurationError, "user or password"),
        ("JWT token is invalid. [0b]", ConfigurationError, "RSA_PUBLIC_KEY"),
        ("Role 'secret' specified in the connect string does not exist", ConfigurationError, "role of the URL"),
        ("User temporarily locked. Try again later", TemporaryError, "locked"),
        ("User access disabled. Contact your local system administrator.", ConfigurationError, "DISABLED = FALSE"),
        ("IP address 192.0.2.7 is not allowed to access Snowflake", ConfigurationError, "network policy"),
        ("290404: 404 Not Found: post https://secret/session", ConfigurationError, "no such account"),
        ("Failed to authenticate: MFA authentication is required", ConfigurationError, "service user"),
        ("something else: secret", TemporaryError, "does not answer"),
    ],
)
def test_errors_of_sign_ins_say_the_fix(message: str, kind: type[Exception], fix: str) -> None:
    found = explain_sign_in("snow", OperationalError(message, 250001, "08001"))
    assert type(found) is kind
    assert fix in str(found)
    assert "secret" not in str(found)


def test_keys_are_asked_for_as_their_columns_type_reads_them() -> None:
    from sophia.capture.snowflake.table import Binding, Table

    types = {"ID": "NUMBER", "DAY": "DATE", "RAW": "BINARY", "NAME": "TEXT"}
    binding = Binding("public.t", "t", (), SnowflakeTable())
    table = Table(binding, "D", "PUBLIC", "T", types, ("ID", "DAY", "RAW"), None, "")
    where, values = table.where_keys([canonical_key([1, "2020-01-01T00:00:00Z", "7loRpQ=="])])
    assert where == (
        '("ID", "DAY", "RAW") IN ((%(k0_0)s, %(k0_1)s::TIMESTAMP_NTZ::DATE, TO_BINARY(%(k0_2)s, \'BASE64\')))'
    )
    assert values == {"k0_0": 1, "k0_1": "2020-01-01T00:00:00Z", "k0_2": "7loRpQ=="}
    assert table.exact_key
    after, values = table.where_after(["1", '"2020-01-01T00:00:00Z"', '"7loRpQ=="'])
    assert after.startswith('WHERE ("ID" > %(a0)s) OR ("ID" = %(a0)s AND "DAY" > %(a1)s::TIMESTAMP_NTZ::DATE) OR (')
    assert values["a1"] == "2020-01-01T00:00:00Z"
