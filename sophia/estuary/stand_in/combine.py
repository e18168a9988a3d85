"""What Estuary makes of the documents of one transaction before it stores them: one a key, in the order of the keys.

Reductions are those of the collections that source-postgres discovers: the document and its `_meta` are merged, the
right side wins, and of `_meta.before` the first one stays. A delete is not associative, so it stays a document of its
own behind what came before it; with history mode nothing is, and all stay.

Invariants: documents of one key keep their order; keys ascend as Estuary's packed keys do; nothing here is I/O.
Source: Flow's `crates/doc/src/combine` and the collection schema of source-postgres.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Document = dict[str, Any]


def pointer_value(document: Mapping[str, Any], pointer: str) -> Any:
    """The value at a JSON pointer, or None."""
    value: Any = document
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def packed_key(document: Mapping[str, Any], pointers: Sequence[str]) -> tuple[tuple[int, Any], ...]:
    """A document's key, comparable as Estuary's packed keys (FoundationDB tuples) are."""
    return tuple(_packed(pointer_value(document, pointer)) for pointer in pointers)


def combine(documents: Iterable[Document], pointers: Sequence[str], *, history: bool = False) -> list[Document]:
    """The documents of one binding's transaction as they are drained.

    Args:
        documents: in the order of the journal. They are not changed.
        pointers: the collection's key.
        history: the collection keeps every event.
    """
    by_key: dict[tuple[tuple[int, Any], ...], list[Document]] = {}
    for document in documents:
        group = by_key.setdefault(packed_key(document, pointers), [])
        if group and not history and document["_meta"]["op"] != "d":
            group[-1] = reduce(group[-1], document)
        else:
            group.append(document)
    return [document for key in sorted(by_key) for document in by_key[key]]


def reduce(left: Document, right: Document) -> Document:
    """Two documents of one key as one: top-level merge, the right side wins."""
    meta = left["_meta"] | right["_meta"]
    if "before" in left["_meta"]:
        meta["before"] = left["_meta"]["before"]
    return left | right | {"_meta": meta}


def _packed(value: Any) -> tuple[int, Any]:
    match value:
        case None:
            return 0, 0
        case bool():
            return 5, value
        case str():
            return 2, value.encode(errors="surrogatepass")
        case int():
            return 3, value
        case float():
            return 4, value
        case _:
            return 6, repr(value)
