"""What is wrong with one version, or with one store, holds up no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia import inbox
from sophia.catalog.models.data import StorePerProfile
from sophia.documents import Change, Clock
from sophia.erasure import erase
from sophia.errors import ConfigurationError, TemporaryError
from sophia.indexing import publication
from sophia.indexing.beginning import begin_version
from sophia.indexing.indexer import indexers
from sophia.indexing.promotion import promote, retire
from sophia.indexing.repair import Session, repair_version
from sophia.indexing.versions import IndexVersion, active_versions, ensure_version
from sophia.stores import Stores
from tests.catalogs import changed
from tests.integration.library import COLLECTION, Library, key
from tests.integration.stores.memory_store import MemoryStore
from tests.integration.stores.test_memory_contract import MemoryStand
from tests.waiting import until

Connection = psycopg.Connection[TupleRow]
RunLoop = Callable[..., Any]


@pytest.fixture
def stand(library: Library) -> MemoryStand:
    return MemoryStand(library)


def other(library: Library, **changes: Any) -> IndexVersion:
    """A second index in the same store, its place ready."""
    entry = library.index.model_copy(update={"name": "other", "class_name": "Others"} | changes)
    version = ensure_version(library.connection, changed(library.catalog, indexes=(entry,)), entry, "local")
    library.store(version).ensure(library.connection, version)
    return version


@pytest.mark.parametrize("where", ["write", "inventory"])
def test_a_store_that_refuses_us_holds_up_no_other_index(
    stand: MemoryStand, run_loop: RunLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """A key that was withdrawn, a plan that is used up: nothing that the other store's indexes have to do with."""
    library, memory = stand.library, stand.memory
    library.put(1, "t", "text")
    library.repair()
    outside = library.version()
    inside = library.index.model_copy(update={"name": "inside", "store": StorePerProfile(local="pgvector")})

    def refuse(*_: Any, **__: Any) -> Any:
        raise ConfigurationError("the memory store refuses the key; set another one")

    with monkeypatch.context() as patched:
        patched.setattr(memory, where, refuse)
        run_loop(library.indexer(changed(library.catalog, indexes=(inside, library.index))))
        library.put(2, "t", "while one of two refuses")
        until(lambda: "waits, others go on: the memory store refuses the key" in caplog.text, "word of it")
        library.put(3, "t", "behind that")
        library.level(next(v for v in active_versions(library.connection) if v.index_name == "inside"))
    stand.level(outside)


@pytest.mark.parametrize("process", ["indexer", "repair"])
def test_a_store_that_hangs_while_a_version_begins_holds_up_no_inbox(
    stand: MemoryStand, run_loop: RunLoop, monkeypatch: pytest.MonkeyPatch, process: str
) -> None:
    """What holds up the inbox holds up the capture, and so every index of the collection."""
    library, memory = stand.library, stand.memory
    ensure = memory.ensure
    taken: list[Any] = []

    def ensure_slowly(connection: Connection, version: IndexVersion) -> None:
        with library.database.connect("capture") as own:
            own.execute("SET lock_timeout = '5s'")
            with own.transaction():
                change = Change(key(1), "c", Clock(1, 100 + len(taken), 0), {"id": 1, "title": "t", "body": "b"})
                taken.append(inbox.accept(own, COLLECTION, [change]))
        ensure(connection, version)

    monkeypatch.setattr(memory, "ensure", ensure_slowly)
    if process == "indexer":
        run_loop(library.indexer())
    else:
        version, _ = begin_version(library.connection, library.catalog, library.index, "local", library.stores)
        assert version == active_versions(library.connection)[0]
    assert taken
    until(lambda: active_versions(library.connection), "the version")


def test_nothing_is_begun_where_another_process_was_quicker(
    stand: MemoryStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, memory = stand.library, stand.memory
    ensure = memory.ensure

    def ensure_late(connection: Connection, version: IndexVersion) -> None:
        monkeypatch.setattr(memory, "ensure", ensure)
        entry = library.index.model_copy(update={"template": "{body}"})
        ensure_version(connection, changed(library.catalog, indexes=(entry,)), entry, "local")
        ensure(connection, version)

    monkeypatch.setattr(memory, "ensure", ensure_late)
    with pytest.raises(TemporaryError, match="at the same moment"):
        begin_version(library.connection, library.catalog, library.index, "local", library.stores)
    assert [v.number for v in active_versions(library.connection)] == [1]
    version, _ = begin_version(library.connection, library.catalog, library.index, "local", library.stores)
    assert version.store_name in memory.objects


def test_a_public_name_that_is_taken_holds_up_no_other_switch_and_no_end(
    stand: MemoryStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, memory = stand.library, stand.memory
    library.put(1, "t", "text")
    library.repair()
    first, second = library.version(), other(library)
    newer = other(library, template="{body}")
    library.repair(version=newer)
    publish = memory.publish
    memory.down = True
    assert promote(library.connection, newer, library.store(newer)).switched
    with pytest.raises(TemporaryError, match="public name"):
        retire(library.connection, second, library.store(second))
    memory.down = False

    def publish_but(connection: Connection, version: IndexVersion) -> None:
        if version.index_name == first.index_name:
            raise ConfigurationError("the name is taken; remove what bears it")
        publish(connection, version)

    monkeypatch.setattr(memory, "publish", publish_but)
    with pytest.raises(ConfigurationError, match="name is taken"):
        publication.settle(library.connection, library.stores)
    assert memory.names == {"Others": newer.store_name}
    retire(library.connection, second, library.store(second))
    monkeypatch.setattr(memory, "publish", publish)
    publication.settle(library.connection, library.stores)
    assert memory.names == {"Others": newer.store_name, "Documents": first.store_name}


def test_a_switch_is_done_also_where_its_public_name_is_taken(
    stand: MemoryStand, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = stand.library
    library.repair()
    new = library.version(library.with_index(template="{body}"))
    library.repair(version=new)

    def refuse(*_: Any) -> None:
        raise ConfigurationError("the name is taken; remove what bears it")

    monkeypatch.setattr(stand.memory, "publish", refuse)
    assert promote(library.connection, new, library.store(new)).switched
    assert "documents v2 serves" in caplog.text
    assert "remove what bears it" in caplog.text


def test_what_is_left_of_another_collection_holds_up_no_erasure(library: Library) -> None:
    """Its version has ended in a store that is away, or whose settings are gone; the key was never in it."""
    library.put(1, "t", "text")
    library.repair()
    library.delete(1)
    inbox.ensure_collection(library.connection, "others", ["id"])
    stores = Stores(library.settings, {"weaviate": MemoryStore(down=True)})
    entry = library.index.model_copy(
        update={"name": "gone", "store": StorePerProfile(local="weaviate"), "class_name": "Gone"}
    )
    gone = ensure_version(library.connection, changed(library.catalog, indexes=(entry,)), entry, "local")
    library.connection.execute(
        "UPDATE sophia.index_versions SET state = 'retired', undropped = true, collection_id = "
        "(SELECT id FROM sophia.collections WHERE name = 'others') WHERE id = %s",
        [gone.id],
    )
    for known in (stores, Stores(library.settings)):
        done = erase(library.connection, COLLECTION, key(1), stores=known, patience=0.2)
        assert done.removed["documents"] in (0, 1)
    assert library.contents() == {}


def test_an_index_that_has_left_a_store_does_not_wait_for_it(library: Library, run_loop: RunLoop) -> None:
    """It moved to another one; what it left behind is removed when the former one answers, and by nobody's repair."""
    at_home = library.catalog
    library.put(1, "t", "text")
    stand = MemoryStand(library)
    library.repair()
    outside, memory = library.version(), stand.memory
    publication.settle(library.connection, library.stores)
    inside = library.version(at_home)
    library.repair(version=inside)
    promote(library.connection, inside, library.store(inside))
    memory.down = True
    with pytest.raises(TemporaryError, match="down"):
        retire(library.connection, outside, library.store(outside))
    session = Session.open(
        *(library.connection, at_home, at_home.indexes[0], "local", lambda _: library.embedder, library.settings),
        run="test",
        stores=library.stores,
    )
    repair_version(library.connection, session, range(2), batch=10, deep=True)
    loops = indexers(at_home, library.database, library.settings, observe=lambda *_: None)
    assert [loop.kind for loop in loops] == ["pgvector", "weaviate"]
    memory.down = False
    run_loop(library.indexer(at_home))
    until(lambda: not memory.objects, "the end of what was left")
