"""Finds the elements of a JSON array without reading them: to cut a large body, and to part a bad document from others.

It only knows strings and brackets, so it is faster than the rest of a request and holds nothing but places. Whether an
element is JSON is left to whoever reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# A larger body is cut, so that what is made of a piece is bounded.
PIECE_BYTES = 1_310_720
# Possessive: a string of 16 MB leaves no places to come back to.
_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]', re.DOTALL)
_BRACKETS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
_OPENING = frozenset(b"[{")
_QUOTE = ord('"')
_COMMA = ord(",")
_ARRAY = ord("[")
_BLANK = b" \t\r\n"


class UnreadableError(ValueError):
    """A body is no array that can be parted."""


def pieces(body: bytes | bytearray) -> Iterator[bytes | bytearray]:
    """The array itself if it is small, else arrays of its elements in order, each of one element or of `PIECE_BYTES`.

    Raises:
        UnreadableError: it is no array; before the first piece.
    """
    if len(body) <= PIECE_BYTES:
        yield body
        return
    cuts: list[tuple[int, int]] = []
    for start, end in _spans(body):
        if cuts and end - cuts[-1][0] <= PIECE_BYTES:
            cuts[-1] = (cuts[-1][0], end)
        else:
            cuts.append((start, end))
    for start, end in cuts:
        yield b"".join((b"[", memoryview(body)[start:end], b"]"))


def elements(array: bytes | bytearray) -> Iterator[bytes]:
    """The text of each element, without the white space around it.

    Raises:
        UnreadableError: it is no array.
    """
    # Twice, since a small body may have more elements than there is room for a list of them.
    for _ in _spans(array):
        pass
    for start, end in _spans(array):
        yield bytes(array[start:end]).strip(_BLANK)


def nesting(text: bytes) -> int:
    """How deep objects and arrays are nested."""
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        token = text[match.start()]
        if token == _QUOTE:
            continue
        depth += 1 if token in _OPENING else -1
        deepest = max(deepest, depth)
    return deepest


def _spans(array: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """First and last place of each element, white space included. Only the end tells whether it is an array."""
    depth = begin = closed = several = 0
    for match in _TOKENS.finditer(array):
        start = match.start()
        token = array[start]
        if token == _QUOTE:
            if match.end() - start == 1 or array[match.end() - 1] != _QUOTE:
                raise UnreadableError("the body ends within a string")
        elif closed:
            raise UnreadableError("the body goes on behind the end of its array")
        elif token == _COMMA:
            if depth == 1:
                yield begin, start
                begin = start + 1
                several = 1
        elif token in _OPENING:
            if depth == 0 and (token != _ARRAY or array[:start].strip(_BLANK)):
                raise UnreadableError("the body is no JSON array")
            depth += 1
            if depth == 1:
                begin = start + 1
        else:
            depth -= 1
            if depth < 0:
                raise UnreadableError("the body closes a bracket that it has not opened")
            if depth == 0:
                if several or array[begin:start].strip(_BLANK):
                    yield begin, start
                closed = match.end()
    if not closed:
        raise UnreadableError("the body ends before its array does" if depth else "the body is no JSON array")
    if array[closed:].strip(_BLANK):
        raise UnreadableError("the body goes on behind the end of its array")
