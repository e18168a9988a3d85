"""A writer that is killed in the middle of a batch, in a process of its own, and the one that comes after it."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

import pytest

from sophia import failpoints
from sophia.database import Database
from sophia.documents import Key
from sophia.stores.weaviate import WeaviateStore
from tests.integration.stores.documents import key
from tests.integration.stores.weaviate_stand import WeaviateStand

pytestmark = pytest.mark.weaviate
KILLED = 77
BEFORE = {key(1): ["a", "b", "c"], key(3): ["gone"]}
# What is there when the writer died: surplus and deleted documents go last, but repair removes first.
LEFT: dict[str, dict[Key, list[str]]] = {
    "weaviate.removed": {},
    "weaviate.put": {key(1): ["x", "b", "c"], key(2): ["new"], key(3): ["gone"]},
    "weaviate.surplus": {key(1): ["x"], key(2): ["new"]},
}


def write_and_die(point: str, url: str, settings: Any, version: Any, documents: Any, replace: bool) -> None:
    """Write until the point is reached, and end there as by `kill -9`."""

    def die(name: str) -> None:
        if name == point:
            os._exit(KILLED)

    failpoints.arm(die)
    with Database(url).connect("killed") as connection:
        WeaviateStore(settings).write(connection, version, documents, "killed", replace=replace)


@pytest.mark.parametrize("point", LEFT)
def test_a_killed_writer_is_succeeded(weaviate: WeaviateStand, database: Database, point: str) -> None:
    version = weaviate.version()
    weaviate.write(version, *(weaviate.document(version, number, BEFORE[key(number)]) for number in (1, 3)))
    batch = [
        weaviate.document(version, 1, ["x"], held=3),
        weaviate.document(version, 2, ["new"]),
        weaviate.document(version, 3, None, held=1),
    ]
    replace = point == "weaviate.removed"
    process = multiprocessing.get_context("spawn").Process(
        target=write_and_die, args=(point, database.url, weaviate.settings, version, batch, replace)
    )
    process.start()
    process.join(120)
    assert process.exitcode == KILLED
    assert weaviate.contents(version) == LEFT[point]
    after = [weaviate.document(version, 1, ["y"], held=3), weaviate.document(version, 2, ["new 2"], held=1), batch[2]]
    weaviate.write(version, *after)
    assert weaviate.contents(version) == {key(1): ["y"], key(2): ["new 2"]}
    assert {stored.newest for stored in weaviate.stored(version).values()} == {each.clock for each in after[:2]}
