"""Reading Estuary's documents: what becomes a change, what is handed back and why, and that nothing is made up."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as bounded
from hypothesis import strategies as st

from sophia.documents import Clock
from sophia.estuary.intake.documents import MOST_APART, MOST_NESTED, STEP_DOCUMENTS, Feed, Parsed, Reader
from sophia.estuary.intake.elements import PIECE_BYTES, UnreadableError, elements, pieces
from tests.intake import FEED, body, document, position_of, uuid_of

READER = Reader(FEED)
HISTORY = Reader(Feed("documents", "sophia/documents", ("id",), ("title", "body"), history=True))


def read(raw: bytes, reader: Reader = READER) -> Parsed:
    """All steps of a body as one."""
    whole = Parsed()
    for step in reader.read(raw, 1):
        whole.documents += step.documents
        whole.changes += step.changes
        whole.rejected += step.rejected
        whole.left |= step.left
    return whole


def reason(raw: bytes) -> str:
    """Why the only document is handed back."""
    found = read(raw)
    assert not found.changes
    (rejected,) = found.rejected
    return rejected.reason


@pytest.mark.parametrize(
    ("text", "clock"),
    [
        ("3e2bc280-1deb-11b2-8000-071353030311", 1_955_088_577_440_000_000),
        ("770f6b80-1dda-11b2-8000-071353030311", 1_955_087_424_480_000_000),
        ("3E2BC280-1DEB-11B2-8000-071353030311", 1_955_088_577_440_000_000),
        ("3e2bc280-1deb-11b2-800c-071353030311", 1_955_088_577_440_000_000),
        ("3e2bc280-1deb-11b2-8c00-071353030311", 1_955_088_577_440_000_003),
    ],
)
def test_clocks_are_those_of_the_reference(text: str, clock: int) -> None:
    (change,) = read(body({"id": 1, "_meta": {"op": "c", "uuid": text}})).changes
    assert change.clock == Clock(1, clock, 0)


def test_a_document_becomes_a_change_with_its_own_text() -> None:
    raw = json.dumps(document(5, 7, title="ü", body="b")).encode()
    (change,) = read(b"[" + raw + b"]").changes
    assert (change.key, change.op, change.complete, change.missing) == ("[5]", "c", True, ())
    assert change.clock == Clock(1, position_of(7), 0)
    assert change.text == raw.decode()
    assert (change.origin.lsn, change.origin.txid) == (7, 7)
    assert change.origin.committed_at == datetime.fromtimestamp(1_700_000_000.007, tz=UTC)
    assert not change.bulk
    assert not change.snapshot


def test_a_backfill_document_takes_the_bulk_lane() -> None:
    source = {"schema": "public", "snapshot": True, "table": "t", "loc": [-1, 3, 0]}
    (change,) = read(body({"id": 1, "_meta": {"op": "c", "source": source, "uuid": uuid_of(1)}})).changes
    assert change.bulk
    assert change.snapshot
    assert (change.origin.lsn, change.origin.committed_at) == (None, None)


def test_an_update_is_partial_and_says_what_of_the_index_it_lacks() -> None:
    (change,) = read(body(document(5, 7, "u", title="t"))).changes
    assert (change.complete, change.missing) == (False, ("body",))


def test_a_delete_has_no_body_whatever_it_holds() -> None:
    (change,) = read(body(document(5, 7, "d", body="\0"))).changes
    assert (change.op, change.text, change.complete) == ("d", None, True)


def test_a_changed_key_is_no_delete_of_the_old_one() -> None:
    found = read(body(document(5, 7, "u", before={"id": 1}, title="t")))
    (change,) = found.changes
    # What is stored under the new key was another row.
    assert (change.key, change.complete, change.missing, change.before_key) == ("[5]", True, ("body",), None)
    assert found.left == {"[1]": change.clock}


def test_in_history_mode_it_is_an_exact_move() -> None:
    found = read(body(document(5, 7, "u", before={"id": 1}, title="t")), HISTORY)
    (change,) = found.changes
    assert (change.key, change.complete, change.before_key, found.left) == ("[5]", False, "[1]", {})


@pytest.mark.parametrize("before", [{"id": 5, "title": "old"}, {"title": "old"}, None, 7, {"id": None}, {"id": []}])
def test_before_without_another_key_is_none_of_our_business(before: Any) -> None:
    found = read(body(document(5, 7, "u", before=before, title="t")))
    assert (found.changes[0].complete, found.left) == (False, {})


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        (b"5", "[5]"),
        (b"-5", "[-5]"),
        (b"-0", "[0]"),
        (b"0", "[0]"),
        (b"123456789012345678901234567890", "[123456789012345678901234567890]"),
        (b"1.50", "[1.5]"),
        (b"1e2", "[100.0]"),
        (b"true", "[true]"),
        (b'"a b"', '["a b"]'),
        ('"ü"'.encode(), '["ü"]'),
        (b'"\\u00fc"', '["ü"]'),
        (b'"a\\/b"', '["a/b"]'),
        (b'"\\""', '["\\""]'),
    ],
)
def test_keys_are_canonical(raw: bytes, key: str) -> None:
    (change,) = read(b'[{"id":%b,"_meta":{"op":"d","uuid":"%b"}}]' % (raw, uuid_of(1).encode())).changes
    assert change.key == key


def test_composite_keys_keep_the_order_of_the_catalog() -> None:
    reader = Reader(Feed("c", "a/c", ("b", "a")))
    (change,) = read(body({"a": 1, "b": "x", "_meta": {"op": "d", "uuid": uuid_of(1)}}), reader).changes
    assert change.key == '["x",1]'


def test_of_equal_properties_the_last_counts() -> None:
    meta = json.dumps(document(0, 3)["_meta"])
    (change,) = read(f'[{{"id":1,"_meta":{{}},"id":2,"_meta":{meta}}}]'.encode()).changes
    assert change.key == "[2]"


META = b'"_meta":{"op":"c","uuid":"%b"}' % uuid_of(1).encode()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"id":1}', "_meta is absent"),
        (b'{"id":1,"_meta":null}', "_meta is absent"),
        (b'{"id":1,"_meta":7}', "not as it must be"),
        (b'{"id":1,"_meta":{"op":"c"}}', "_meta.uuid is absent"),
        (b'{"id":1,"_meta":{"op":"c","uuid":7}}', "no UUID of version 1"),
        (b'{"id":1,"_meta":{"op":"c","uuid":"abc-123-def-456"}}', "no UUID of version 1"),
        (b'{"id":1,"_meta":{"op":"c","uuid":"9f0c2a54-6d5c-4f37-8c2d-000000000001"}}', "no UUID of version 1"),
        (b'{"id":1,"_meta":{"op":"c","uuid":"ffffffff-ffff-1fff-8000-000000000001"}}', "63 bits"),
        (b'{"id":1,"_meta":{"op":"x","uuid":"%b"}}' % uuid_of(1).encode(), "_meta.op"),
        (b'{"id":1,"_meta":{"uuid":"%b"}}' % uuid_of(1).encode(), "_meta.op"),
        (b"{%b}" % META, "'id' is absent"),
        (b'{"id":null,%b}' % META, "'id' is null"),
        (b'{"id":[1],%b}' % META, "object or array"),
        (b'{"id":{"a":1},%b}' % META, "object or array"),
        (b'{"id":1,"a":"\\u0000",%b}' % META, "NUL"),
        (b'{"id":1,"a":"\xff",%b}' % META, "UTF-8"),
        (b'{"id":"\xff",%b}' % META, "UTF-8"),
        (b'{"id":1,"a":"\\ud800",%b}' % META, "no JSON"),
        (b'{"id":1,"a":NaN,%b}' % META, "no JSON"),
        (b'{"id":1,"a":-Infinity,%b}' % META, "no JSON"),
        (b'{"id":1,"a":01,%b}' % META, "no JSON"),
        (b'{"id":1,"a":%b1%b,%b}' % (b"[" * 600, b"]" * 600, META), "nested"),
        (b'{"id":1,"a":%b1%b,%b}' % (b"[" * 10_000, b"]" * 10_000, META), "nested"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested"),
        (b"7", "not as it must be"),
        (b"null", "not as it must be"),
        (b'"text"', "not as it must be"),
        (b"[]", "not as it must be"),
    ],
)
def test_what_cannot_be_taken_is_handed_back_alone(raw: bytes, said: str) -> None:
    assert said in reason(b"[%b]" % raw)
    good = [document(number, number, title="t") for number in (1, 2)]
    found = read(body(good[0], raw, good[1]))
    assert [change.key for change in found.changes] == ["[1]", "[2]"]
    assert [rejected.text for rejected in found.rejected] == [raw]
    assert found.documents == 3


@pytest.mark.parametrize(
    "raw", [b'{"id":9,"a":NaN,%b}' % META, b'{"id":9,"a":"\\u0000",%b}' % META, b'{"id":9,"a":"\xff",%b}' % META]
)
def test_the_key_is_told_where_it_can_be(raw: bytes) -> None:
    (found,) = read(b"[%b]" % raw).rejected
    assert (found.key, found.clock) == ("[9]", Clock(1, position_of(1), 0))
    marker = found.marker()
    assert marker is not None
    assert Clock(1, position_of(1) - 1, 5) < marker.clock < Clock(1, position_of(1), 0)


def test_no_reason_quotes_the_document() -> None:
    for raw in (
        b'{"id":{"secret":1},%b}' % META,
        b'{"id":1,"_meta":{"op":"secret","uuid":"secret"}}',
        b'{"secret":NaN}',
    ):
        assert "secret" not in reason(b"[%b]" % raw)


def test_deep_but_not_too_deep() -> None:
    raw = b'{"id":1,"a":%b1%b,%b}' % (b"[" * (MOST_NESTED - 1), b"]" * (MOST_NESTED - 1), META)
    assert len(read(b"[%b]" % raw).changes) == 1
    # Brackets within strings nest nothing.
    assert len(read(body(document(1, 1, title="[" * 5_000))).changes) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"7",
        b"{}",
        b'{"id":1}',
        b"null",
        b"[",
        b"[1",
        b"]",
        b"[1]]",
        b"[1] x",
        b"[1][2]",
        b'["abc',
        b'["abc\\',
        b'[{"id":1,"_meta":',
        b"\xef\xbb\xbf[]",
        b"\x00",
        "[]".encode("utf-16"),
        b"x[1]",
        b'"["',
    ],
)
def test_a_body_that_is_no_array_is_handed_back_as_a_whole(raw: bytes) -> None:
    found = read(raw)
    assert (found.documents, found.changes) == (0, [])
    assert [(rejected.text, rejected.documents) for rejected in found.rejected] == [(raw, 0)]


def test_an_empty_array_is_nothing() -> None:
    for raw in (b"[]", b" [ ] \n"):
        assert read(raw) == Parsed()


def test_much_that_cannot_be_taken_is_one_entry_a_step() -> None:
    count = STEP_DOCUMENTS + 5
    found = read(body(*[b'{"id":%d}' % number for number in range(count)], document(1, 1)))
    assert sum(rejected.documents for rejected in found.rejected) == count
    assert len(found.rejected) <= MOST_APART + 1
    assert len(found.changes) == 1
    again = read(found.rejected[0].text)
    assert again.documents == found.rejected[0].documents


def test_a_large_body_is_cut_between_documents() -> None:
    documents = [document(number, number, title='[,]{"\\' * 20, body="x" * 20_000) for number in range(200)]
    raw = body(*documents)
    assert len(raw) > 2 * PIECE_BYTES
    parts = list(pieces(bytearray(raw)))
    assert len(parts) > 2
    assert [each for part in parts for each in json.loads(part)] == documents
    assert [change.key for change in read(raw).changes] == [f"[{number}]" for number in range(200)]
    with pytest.raises(UnreadableError):
        list(pieces(raw[:-1]))


def test_one_document_of_16_mb() -> None:
    (change,) = read(body(document(1, 1, body="x" * 16_000_000))).changes
    assert change.text is not None
    assert len(change.text) > 16_000_000


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(_values, max_size=8))
@bounded(max_examples=60, deadline=None, derandomize=True, database=None)
def test_elements_are_those_of_a_json_parser(values: list[Any]) -> None:
    raw = json.dumps(values, indent=1).encode()
    assert [json.loads(each) for each in elements(raw)] == values
    found = read(raw)
    assert found.documents == len(values)
    assert len(found.changes) + sum(rejected.documents for rejected in found.rejected) == len(values)


@given(st.binary(max_size=60) | st.text(alphabet='[]{},"\\:1 a', max_size=40).map(str.encode))
@bounded(max_examples=300, deadline=None, derandomize=True, database=None)
def test_nothing_that_can_be_sent_is_lost(raw: bytes) -> None:
    found = read(raw)
    kept = b"".join(rejected.text for rejected in found.rejected)
    assert not found.changes
    # Every sign that is no separator is kept.
    blank = b" \t\r\n,[]"
    assert len(kept.translate(None, blank)) >= len(raw.strip(b" \t\r\n")[1:-1].translate(None, blank)) or kept == raw
