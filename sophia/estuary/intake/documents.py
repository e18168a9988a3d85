"""Reads documents as Estuary's webhook sends them: a JSON array of raw documents becomes changes for the inbox.

Invariants, each with a test:

* A document that cannot be taken stands in the way of no other: it is handed back with its text and the reason.
* A document's own text goes to the database as it came, `_meta` included, which the database strips: no number loses a
  digit, no value is made up. Of a property that occurs twice the last one counts, as JSON parsers have it.
* Nothing but `_meta`, the key and the names of top-level properties is looked at, so that the memory of a document is
  the size of its text, however it is nested.
* The clock is that of `_meta.uuid`, under the collection's generation. Never arrival, wall time or `loc`.

Everything here is pure: no I/O. What only PostgreSQL can tell (a number that it cannot hold) it says when it is asked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Raw

from sophia.documents import Change, Clock, Key, Op, Origin, canonical_key, uuid_clock, uuid_time
from sophia.errors import DocumentError
from sophia.estuary.intake.elements import UnreadableError, elements, nesting, pieces
from sophia.inbox import LONGEST_KEY_BYTES

# Readers of documents descend by recursion; Python's own limit is 1,000, its callers included.
MOST_NESTED = 500
# What one step hands on: enough to be cheap, little enough for the database to work on it while the next is read.
STEP_BYTES = 256 * 1024
STEP_DOCUMENTS = 2_000
# Of documents that cannot be taken these many of a step are kept apart; more are kept as one array.
MOST_APART = 32
# A document that is no JSON is looked through for its key up to this size.
LENIENT_BYTES = 65_536
_LONGEST = (1 << 63) - 1
_LONGEST_LSN = (1 << 64) - 1
# Between a document and whatever came before it.
_LATEST_ORDINAL = 1 << 62
_ABSENT = Raw(b"")
_OPS: dict[bytes, Op] = {b'"c"': "c", b'"u"': "u", b'"d"': "d"}
_UUID = re.compile(
    rb'"([0-9a-fA-F]{8})-([0-9a-fA-F]{4})-1([0-9a-fA-F]{3})-([89abAB][0-9a-fA-F])[0-9a-fA-F]{2}-[0-9a-fA-F]{12}"'
)
# Parts of a key whose JSON is canonical as it stands.
_PLAIN = re.compile(r'(?:-?[1-9][0-9]{0,17}|0|"[ !#-\[\]-~]*")')
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_decode_elements = msgspec.json.Decoder(list[Raw]).decode


@dataclass(frozen=True, slots=True)
class Feed:
    """A collection that Estuary sends.

    Attributes:
        collection: Sophia's name of it.
        estuary: its full Estuary name.
        key: columns of the key.
        columns: those that its indexes read; a document without one of them is not whole.
        history: the capture keeps every change apart, so that a changed key is an exact move.
    """

    collection: str
    estuary: str
    key: tuple[str, ...]
    columns: tuple[str, ...] = ()
    history: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """What cannot be taken.

    Attributes:
        text: as it came: one document, or, with `documents` 0, a whole body that cannot be read, or, with more than
            one, an array of them.
        reason: without any text of it.
        key: None where it cannot be told.
        clock: None where it cannot be told.
    """

    text: bytes
    reason: str
    documents: int = 1
    key: Key | None = None
    clock: Clock | None = None

    @property
    def digest(self) -> bytes:
        """What tells it from others: the SHA-256 of its text."""
        return hashlib.sha256(self.text).digest()

    def marker(self) -> Change | None:
        """A change that marks the key as incomplete, right before this document; None where it cannot be told."""
        if self.key is None or self.clock is None:
            return None
        generation, position, _ = self.clock
        before = Clock(generation, position - 1, _LATEST_ORDINAL)
        return Change(self.key, "u", before, {}, complete=False, missing=("*",), snapshot=True)


@dataclass(slots=True)
class Parsed:
    """A step's documents: what the inbox takes, what it cannot take, and the keys that rows have left.

    Attributes:
        documents: how many these are in all.
        size: bytes of their texts.
        left: old keys by the clock of the document that told of them. What became of them is not known.
        came: keys that a row came to, by the same clock, where the document does not tell all of the row. Several of
            one key may have been made one, so that a column is another row's that was there before; and keys are
            delivered in their order, so that what the old key held may be older than the move.
    """

    documents: int = 0
    size: int = 0
    changes: list[Change] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    left: dict[Key, Clock] = field(default_factory=dict)
    came: dict[Key, Clock] = field(default_factory=dict)


class _Source(msgspec.Struct):
    """`_meta.source`, where it is of use."""

    ts_ms: int | None = None
    loc: tuple[int, int, int] | None = None
    txid: int | None = None
    snapshot: bool = False


class _Meta(msgspec.Struct):
    op: Raw = _ABSENT
    uuid: Raw = _ABSENT
    before: Raw = _ABSENT
    source: Raw = _ABSENT


_decode_source = msgspec.json.Decoder(_Source).decode
_NO_SOURCE = _Source()


class Reader:
    """Reads the documents of one collection. Safe to use from several threads."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        names = list(dict.fromkeys((*feed.key, *feed.columns)))
        fields = {name: f"f{number}" for number, name in enumerate(names)}
        self._key = [(name, fields[name]) for name in feed.key]
        self._columns = [(name, fields[name]) for name in feed.columns]
        envelope = _struct("Envelope", fields, [("meta", _Meta | None, None)], {"meta": "_meta"})
        keys = _struct("Before", {name: fields[name] for name in feed.key}, [], {})
        self._decode = msgspec.json.Decoder(list[envelope]).decode  # type: ignore[valid-type]
        self._decode_one = msgspec.json.Decoder(envelope).decode
        self._decode_before = msgspec.json.Decoder(keys).decode
        self._last_time: tuple[int, datetime | None] = (0, None)

    def read(self, body: bytes | bytearray, generation: int) -> Iterator[Parsed]:
        """The documents of a request's body, in their order, in steps.

        A body that is no array is handed back as a whole, and nothing else of it.
        """
        try:
            parts = list(pieces(body))
        except UnreadableError as error:
            yield Parsed(rejected=[Rejected(bytes(body), str(error), documents=0)])
            return
        for part in parts:
            try:
                envelopes: list[Any] = self._decode(part)
                raws = _decode_elements(part)
            except (msgspec.DecodeError, RecursionError):
                try:
                    yield from self._steps(((text, None) for text in elements(part)), generation)
                except UnreadableError as error:
                    yield Parsed(rejected=[Rejected(bytes(part), str(error), documents=0)])
                    return
            else:
                yield from self._steps(zip(map(bytes, raws), envelopes, strict=True), generation)

    def _steps(self, documents: Iterator[tuple[bytes, Any]], generation: int) -> Iterator[Parsed]:
        step = Parsed()
        for text, envelope in documents:
            step.documents += 1
            step.size += len(text)
            try:
                change, left = self._read(text, envelope or self._envelope(text), generation)
                step.changes.append(change)
                if left is not None:
                    step.left[left] = max(change.clock, step.left.get(left, change.clock))
                if change.op == "u" and (left is not None or (change.before_key is not None and change.missing)):
                    step.came[change.key] = max(change.clock, step.came.get(change.key, change.clock))
            except _RejectedError as error:
                step.rejected.append(Rejected(text, str(error), key=error.key, clock=error.clock))
            except DocumentError as error:
                key, clock = self._identify(text, generation)
                step.rejected.append(Rejected(text, str(error), key=key, clock=clock))
            if step.size >= STEP_BYTES or step.documents >= STEP_DOCUMENTS:
                yield _bounded(step)
                step = Parsed()
        if step.documents:
            yield _bounded(step)

    def _envelope(self, text: bytes) -> Any:
        try:
            return self._decode_one(text)
        except msgspec.ValidationError as error:
            # Names types and places, and no value.
            raise DocumentError(f"the document is not as it must be: {error}") from None
        except msgspec.DecodeError as error:
            raise DocumentError(f"the document is no JSON: {error}") from None
        except RecursionError:
            raise DocumentError(_too_deep()) from None

    def _read(self, text: bytes, envelope: Any, generation: int) -> tuple[Change, Key | None]:
        """The change, and the key that its row has left if what became of that is not known."""
        meta: _Meta | None = envelope.meta
        if meta is None:
            raise DocumentError("_meta is absent")
        key = self._key_of(envelope)
        clock = Clock(generation, _position(bytes(meta.uuid)), 0)
        op = _OPS.get(bytes(meta.op))
        if op is None:
            raise _RejectedError("_meta.op is none of c, u, d", key, clock)
        source, origin = self._origin(bytes(meta.source), clock)
        snapshot = source.snapshot
        old = None if meta.before is _ABSENT else self._before(meta.before, key)
        if op == "d":
            return Change(key, "d", clock, None, origin=origin, bulk=snapshot, snapshot=snapshot), old
        if text.count(b"[") + text.count(b"{") > MOST_NESTED and nesting(text) > MOST_NESTED:
            raise _RejectedError(_too_deep(), key, clock)
        if b"\\u0000" in text and _NUL.search(text):
            raise _RejectedError("a text holds the character NUL (\\u0000), which jsonb cannot hold", key, clock)
        try:
            row = text.decode()
        except UnicodeDecodeError as error:
            raise _RejectedError(f"the document is not UTF-8 (byte {error.start})", key, clock) from None
        complete = op == "c"
        missing = (
            () if complete else tuple([name for name, attr in self._columns if getattr(envelope, attr) is _ABSENT])
        )
        moved_from = None
        if old is not None and op == "u":
            if self.feed.history:
                moved_from, old = old, None
            else:
                # What is stored under the new key was another row: nothing of it may be merged in.
                complete = True
        change = Change(
            key, op, clock, None, complete, missing, moved_from, origin, bulk=snapshot, snapshot=snapshot, text=row
        )
        return change, old

    def _key_of(self, envelope: Any) -> Key:
        parts = []
        for name, attr in self._key:
            raw: Raw = getattr(envelope, attr)
            if raw is _ABSENT:
                raise DocumentError(f"key column {name!r} is absent")
            try:
                part = str(raw, "utf-8")
            except UnicodeDecodeError:
                raise DocumentError(f"key column {name!r} is not UTF-8") from None
            parts.append(part if _PLAIN.fullmatch(part) else _canonical_part(name, part))
        key = Key(f"[{','.join(parts)}]")
        # A character has at most four bytes.
        if len(key) > LONGEST_KEY_BYTES // 4 and len(key.encode()) > LONGEST_KEY_BYTES:
            raise DocumentError(
                f"the key has {len(key.encode()):,} bytes; at most {LONGEST_KEY_BYTES:,} can be indexed: key the "
                "collection by a shorter column"
            )
        return key

    def _before(self, raw: Raw, key: Key) -> Key | None:
        """The key that the row had, if it is another and can be told."""
        try:
            old = self._key_of(self._decode_before(raw))
        except (msgspec.DecodeError, DocumentError, RecursionError):
            return None
        return old if old != key else None

    def _origin(self, raw: bytes, clock: Clock) -> tuple[_Source, Origin]:
        """Where it came from, as far as that is told in the shape that we know."""
        source = _NO_SOURCE
        if raw:
            try:
                source = _decode_source(raw)
            except (msgspec.DecodeError, RecursionError):
                source = _NO_SOURCE
        # A copied row has a place of -1 in the log.
        lsn = source.loc[2] if source.loc is not None and min(source.loc) >= 0 else None
        if lsn is not None and lsn > _LONGEST_LSN:
            lsn = None
        txid = source.txid if source.txid is not None and 0 <= source.txid <= _LONGEST else None
        return source, Origin(lsn, txid, self._committed(source, clock.position))

    def _committed(self, source: _Source, position: int) -> datetime | None:
        """The commit's time; for a source that tells none, that of Estuary. A copied row has none."""
        if source.ts_ms is None:
            return None if source.snapshot else uuid_time(position)
        known, found = self._last_time
        if known != source.ts_ms:
            try:
                found = datetime.fromtimestamp(source.ts_ms / 1000, tz=UTC)
            except (ValueError, OverflowError, OSError):
                found = None
            self._last_time = (source.ts_ms, found)
        return found

    def _identify(self, text: bytes, generation: int) -> tuple[Key | None, Clock | None]:
        """Key and clock of a document that is not strictly JSON, where Python's more lenient parser finds them."""
        if len(text) > LENIENT_BYTES:
            return None, None
        try:
            found = json.loads(text)
            key = canonical_key([found[name] for name in self.feed.key])
            if len(key.encode()) > LONGEST_KEY_BYTES:
                return None, None
            return key, Clock(generation, _fitting(uuid_clock(found["_meta"]["uuid"])), 0)
        except (ValueError, LookupError, TypeError, RecursionError, DocumentError):
            return None, None


class _RejectedError(DocumentError):
    """A document cannot be taken, but its key and its clock are known."""

    def __init__(self, reason: str, key: Key, clock: Clock) -> None:
        super().__init__(reason)
        self.key = key
        self.clock = clock


def _struct(name: str, fields: Mapping[str, str], more: list[Any], renamed: Mapping[str, str]) -> Any:
    """A type that picks the given properties of an object as raw JSON, by attribute."""
    picked = [*more, *((attribute, Raw, _ABSENT) for attribute in fields.values())]
    rename = {attribute: column for column, attribute in fields.items()} | dict(renamed)
    return msgspec.defstruct(name, picked, rename=rename)


def _bounded(step: Parsed) -> Parsed:
    """The step, with what cannot be taken in one piece where it is much."""
    keyless = [each for each in step.rejected if each.key is None]
    if len(keyless) > MOST_APART:
        text = b"[" + b",".join([each.text for each in keyless]) + b"]"
        reason = f"{len(keyless)} documents; the first: {keyless[0].reason}"
        step.rejected = [each for each in step.rejected if each.key is not None]
        step.rejected.append(Rejected(text, reason, documents=len(keyless)))
    return step


def _position(raw: bytes) -> int:
    """The clock of a UUID in JSON."""
    match = _UUID.fullmatch(raw)
    if match is not None:
        low, middle, high, sequence = match.groups()
        return _fitting(int(high + middle + low, 16) << 4 | (int(sequence, 16) >> 2) & 0xF)
    if not raw:
        raise DocumentError("_meta.uuid is absent")
    try:
        return _fitting(uuid_clock(json.loads(raw)))
    except (ValueError, DocumentError, RecursionError):
        raise DocumentError("_meta.uuid is no UUID of version 1") from None


def _fitting(clock: int) -> int:
    if clock > _LONGEST:
        raise DocumentError("_meta.uuid has a clock that does not fit 63 bits")
    return clock


def _canonical_part(name: str, text: str) -> str:
    """One part of a key as canonical JSON."""
    if text[:1] in "{[":
        raise DocumentError(f"key column {name!r} is an object or array; a key is a string, number or boolean")
    if text == "null":
        raise DocumentError(f"key column {name!r} is null")
    try:
        part = canonical_key([json.loads(text)])[1:-1]
        part.encode()
    except (ValueError, DocumentError):
        raise DocumentError(f"key column {name!r} is nothing that a key can be") from None
    return part


def _too_deep() -> str:
    return f"the document is nested more than {MOST_NESTED} deep"
