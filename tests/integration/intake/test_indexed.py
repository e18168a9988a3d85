"""What Estuary delivers reaches the index: live documents, merged ones, backfills, deletes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.intake import body, document
from tests.integration.intake.inbox_view import Deliveries
from tests.integration.library import Library
from tests.waiting import until


def snapshot(key: int, number: int, **columns: Any) -> dict[str, Any]:
    """A document of a backfill."""
    row = document(key, number, **columns)
    row["_meta"]["source"] |= {"snapshot": True, "loc": [-1, number, 0]}
    return row


def test_what_is_delivered_is_indexed(library: Library, deliveries: Deliveries, run_loop: Callable[[Any], Any]) -> None:
    columns = {"title": "t", "body": "b", "module": "m", "kind": "k"}
    library.version()
    run_loop(library.indexer())
    deliveries.take(
        *[snapshot(n, n, **columns) for n in range(20)], *[document(n, n, **columns) for n in range(20, 40)]
    )
    until(lambda: len(library.contents()) == 40, "the first documents")
    # Merged into what is stored; the last of the request is older than what is there, so that positions have a gap.
    deliveries.take_raw(body(*[document(n, 100 + n, "u", title=f"new {n}") for n in range(30)], document(39, 1, "u")))
    deliveries.take(document(38, 200, "d"))
    until(lambda: "[38]" not in library.contents(), "the delete")
    library.level()
    contents = library.contents()
    assert len(contents) == 39
    assert "new 7" in contents["[7]"][0]
    assert "new" not in contents["[39]"][0]
