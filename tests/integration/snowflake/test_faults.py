"""Snowflake in trouble: each fault is told with its fix, tried again where that helps, and shows nothing secret."""

from __future__ import annotations

import logging
import threading

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from sophia.capture.snowflake import Account, Binding, SnowflakeCapture, SnowflakeSource
from sophia.errors import ConfigurationError, SourceError, TemporaryError
from sophia.services.worker import Loop, keep_running
from sophia.settings import CaptureSettings
from tests.integration.snowflake.conftest import QUICK, Snow, by_cursor, by_stream
from tests.integration.snowflake.stream_shim import Fault
from tests.waiting import until

ROWS = ("1, 'one', '2026-01-01'", "2, 'two', '2026-01-02'")
ITEMS = "CREATE TABLE ITEMS (ID NUMBER(38,0), BODY VARCHAR"
READ = r'FROM "SNOW\d+"\."PUBLIC"\."ITEMS"'


@pytest.mark.parametrize(
    ("fault", "kind", "fix"),
    [
        (Fault("^login", "390100", "Incorrect username or password was specified."), ConfigurationError, "password"),
        (Fault("^login", "390144", "JWT token is invalid."), ConfigurationError, "RSA_PUBLIC_KEY"),
        (
            Fault(READ, "000606", "No active warehouse selected", "57P03"),
            ConfigurationError,
            "GRANT USAGE ON WAREHOUSE",
        ),
        (Fault(READ, "390114", "Authentication token has expired.", "08001"), TemporaryError, "session has ended"),
    ],
)
def test_a_fault_of_the_source_ends_the_run_with_its_fix(
    snow: Snow, fault: Fault, kind: type[Exception], fix: str
) -> None:
    snow.items(*ROWS)
    snow.shim.faults.append(fault)
    with pytest.raises(kind, match=fix):
        snow.once(by_cursor())
    snow.once(by_cursor())
    snow.level(seconds=0)


def test_a_suspended_warehouse_is_waited_for(snow: Snow, caplog: pytest.LogCaptureFixture) -> None:
    snow.items(*ROWS)
    snow.once(by_cursor())
    snow.insert("3, 'three', '2026-01-03'")
    suspended = Fault(READ, "090064", "Warehouse 'LOADING' was suspended and cannot be resumed", "22000", times=2)
    snow.shim.faults.append(suspended)
    capture, stop = snow.capture(by_cursor()), threading.Event()
    loop = Loop("capture snow", capture.run, capture.ready)
    thread = threading.Thread(target=keep_running, args=(loop, stop))
    thread.start()
    until(lambda: 3 in snow.bodies(), "the row behind the fault")
    stop.set()
    thread.join(60)
    assert suspended.times == 0
    assert caplog.text.count("AUTO_RESUME") == 2


def test_a_table_at_fault_does_not_stop_the_others(snow: Snow) -> None:
    snow.items(*ROWS)
    snow.run("CREATE TABLE OTHER (ID NUMBER(38,0) PRIMARY KEY, BODY VARCHAR, UPDATED_AT TIMESTAMP_NTZ)")
    bindings = (by_cursor(), by_cursor("other", "public.other"))
    snow.once(*bindings)
    snow.run("DROP TABLE ITEMS")
    snow.run("INSERT INTO OTHER VALUES (1, 'still read', '2026-01-01')")
    snow.once(*bindings)
    assert snow.bodies("other") == {1: "still read"}
    assert ["does not exist" in letter and "GRANT SELECT" in letter for letter in snow.letters()] == [True]
    assert snow.bodies() == {1: "one", 2: "two"}
    # While it runs, too.
    snow.items("1, 'anew', '2026-01-01'")
    running = snow.start(*bindings)
    until(lambda: snow.bodies() == {1: "anew"}, "the table made anew")
    until(lambda: snow.letters() == [], "the end of the report")
    snow.shim.faults.append(Fault(READ, "003001", "Insufficient privileges to operate on table", "42501"))
    until(lambda: any("may not do this" in letter for letter in snow.letters()), "the report")
    snow.run("INSERT INTO ITEMS VALUES (2, 'granted again', '2026-01-02')")
    snow.level()
    assert running.error is None


@pytest.mark.parametrize(
    ("statement", "binding", "fix"),
    [
        ("SELECT 1", by_cursor(), "GRANT SELECT ON TABLE PUBLIC.ITEMS"),
        (f"{ITEMS})", by_stream(), r"key: \[column\]"),
        (f"{ITEMS})", by_stream(key=("nr",)), "no column 'nr'; it has ID, BODY"),
        (f"{ITEMS}, PRIMARY KEY (ID))", by_cursor(cursor="body"), "must be a timestamp"),
    ],
)
def test_a_table_that_cannot_be_captured_says_why(snow: Snow, statement: str, binding: Binding, fix: str) -> None:
    snow.run(statement)
    with pytest.raises(SourceError, match=fix):
        snow.once(binding)


def test_nothing_secret_and_no_row_is_logged(snow: Snow, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    snow.items("1, 'very secret text', '2026-01-01'")
    snow.shim.faults.append(Fault(READ, "100038", "Numeric value 'very secret text' is not recognized", "22018"))
    snow.once(by_cursor())
    snow.once(by_cursor())
    # What the fake server itself logs is its own affair.
    told = [record.getMessage() for record in caplog.records if not record.name.startswith("fakesnow")]
    assert [text for text in told if "very secret text" in text or "password" in text.lower()] == []
    assert snow.letters() == []


def test_a_key_pair_signs_in_and_the_key_stays_here(snow: Snow) -> None:
    snow.items(*ROWS)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    der = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    account = Account("example-account", snow.name, "loader", snow.account.options, private_key=der)
    source = SnowflakeSource("snow", account, "SOPHIA_STAGING", (by_cursor(),))
    capture, stop = SnowflakeCapture(source, snow.database, QUICK, CaptureSettings()), threading.Event()
    thread = threading.Thread(target=capture.run, args=(stop,))
    thread.start()
    until(lambda: snow.bodies() == {1: "one", 2: "two"}, "the rows")
    stop.set()
    thread.join(60)
    sign_in = snow.shim.sign_ins[-1]
    assert sign_in["AUTHENTICATOR"] == "SNOWFLAKE_JWT"
    assert "PASSWORD" not in sign_in
    claims = jwt.decode(sign_in["TOKEN"], key.public_key(), algorithms=["RS256"])
    assert claims["sub"] == "EXAMPLE-ACCOUNT.LOADER"
