"""The whole way to a store outside of the database, with deaths at random points; and what only such a store needs.

The store is the double `MemoryStore`; the indexer, the writer and the database are real.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia import failpoints
from sophia.catalog.models.data import StorePerProfile
from sophia.database import Database
from sophia.documents import Key
from sophia.erasure import erase
from sophia.errors import ConfigurationError, TemporaryError
from sophia.indexing import indexer as indexer_module
from sophia.indexing import publication, removal, shards
from sophia.indexing.gates import complete
from sophia.indexing.indexer import indexers
from sophia.indexing.promotion import promote, retire
from sophia.indexing.repair import Session, repair_version
from sophia.indexing.shards import HeldError
from sophia.indexing.status import index_status
from sophia.indexing.versions import IndexVersion, active_versions, ensure_version, serving_version
from sophia.stores import IN_DATABASE, Stores
from sophia.stores.base import Scope
from sophia.stores.ledger import held_ids, ledger_sample, live_ids, vector_hashes
from tests.catalogs import changed
from tests.integration.library import Library, key
from tests.integration.stores.contract import LONG, Killed, dying, long_after, text_of
from tests.integration.stores.test_memory_contract import MemoryStand
from tests.waiting import until

Connection = psycopg.Connection[TupleRow]
RunLoop = Callable[..., Any]
POINTS = ("writer.embedded", "external.pending", "external.written", "external.before_commit")


@pytest.fixture
def stand(library: Library) -> Iterator[MemoryStand]:
    yield MemoryStand(library)
    failpoints.arm(None)


@pytest.fixture
def filled(stand: MemoryStand) -> MemoryStand:
    for number in range(12):
        stand.library.put(number, f"title {number}", f"text {number}")
    stand.library.put(3, "long", LONG)
    stand.library.repair()
    return stand


# ---- the whole way --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_at_rest_the_store_is_what_the_documents_say(stand: MemoryStand, run_loop: RunLoop, seed: int) -> None:
    """Changes, deaths at random points, a store that fails, is late or down: nothing lost, doubled or stale."""
    chance = random.Random(seed)
    library, memory = stand.library, stand.memory
    version = library.version()
    deaths = 0

    def change() -> None:
        number = chance.randrange(15)
        if chance.random() < 0.25:
            library.delete(number)
        else:
            body = LONG[: chance.randrange(6000)] if chance.random() < 0.3 else f"text {chance.random()}"
            library.put(number, f"title {number}", body, bulk=chance.random() < 0.2, module=chance.choice("ab"))

    for turn in range(12):
        # Something to write in every turn, whatever chance says.
        library.put(20, "turn", f"text {turn}")
        for _ in range(chance.randrange(1, 6)):
            change()
        fault = chance.choice(("death", "death", "part", "late", "down", "none"))
        point, skip = chance.choice(POINTS), chance.randrange(2)
        if turn < 2:
            fault, skip = "death", 0
        if fault == "part":
            memory.fail_after = chance.randrange(3)
        elif fault == "late":
            memory.late = True
        memory.down = fault == "down"
        left = [skip]

        def die(name: str, point: str = point, left: list[int] = left) -> None:
            if name == point:
                left[0] -= 1
                if left[0] < 0:
                    failpoints.arm(None)
                    raise Killed

        failpoints.arm(die if fault == "death" else None)
        tries = len(memory.writes)
        running = run_loop(library.indexer(), wait=False)
        if fault == "death":
            until(lambda r=running: r.ended or (not library.pending(version) and not stand.faults(version)), "an end")
        elif fault in ("part", "late"):
            until(lambda n=tries: len(memory.writes) > n or not stand.faults(version), "a write")
        failpoints.arm(None)
        memory.down = False
        deaths += running.ended
        if running.ended:
            assert isinstance(running.error, Killed)
        else:
            change()
            # It may have been about to die when the point was taken away.
            with contextlib.suppress(Killed):
                running.stop()
        # What was under way lands before the time of the shards is over, and they are free then.
        memory.land()
        memory.fail_after, memory.late = None, False
        long_after(library.connection)
    library.connection.execute("UPDATE sophia.ledger SET updated_at = '-infinity' WHERE state = 'pending'")
    running = run_loop(library.indexer())
    stand.level(version)
    until(lambda: not library.pending(version), "nothing left pending")
    running.stop()
    stand.right(version)
    assert deaths >= 2


def test_no_request_of_a_dead_writer_comes_behind_its_successor(filled: MemoryStand) -> None:
    """It gave up waiting, or died; what it sent takes effect later. Until that must be over, nobody writes the key."""
    library, memory = filled.library, filled.memory
    version = library.version()
    library.put(3, "long", LONG[:3000])
    memory.late = True
    with pytest.raises(TemporaryError, match="in time"):
        library.apply(3)
    library.put(3, "short", "now")
    with pytest.raises(HeldError):
        library.apply(3)
    # Other shards are free, and who is patient waits.
    writes = len(memory.writes)
    memory.land()
    long_after(library.connection)
    library.apply(3)
    assert len(memory.writes) == writes + 1
    assert memory.writes[-1] == ([key(3)], True), "what was pending is not trusted"
    filled.right(version)


def test_shards_are_free_at_once_when_nothing_is_under_way(filled: MemoryStand) -> None:
    library = filled.library
    library.put(1, "t", "another text")
    filled.memory.before = lambda writes: setattr(filled.memory, "down", True)
    with pytest.raises(TemporaryError, match="down"):
        library.apply(1)
    assert library.pending(active_versions(library.connection)[0]) == [key(1)]
    filled.memory.before = lambda writes: None
    filled.memory.down = False
    library.apply(1)
    filled.right()


def test_what_was_pending_is_read_by_nobody_as_done(filled: MemoryStand) -> None:
    """A document of which nobody knows whether it is in the store is not complete, not vouched for, and not wrong."""
    library = filled.library
    version = library.version()
    library.put(1, "t", "another text")
    with dying("external.written"), pytest.raises(Killed), library.database.connect("dead") as dead:
        library.writer(version).apply(dead, library.rows(1))
    assert [status.pending for status in index_status(library.connection)] == [1]
    assert not complete(library.connection, version, 0.0).passed
    assert live_ids(library.connection, version, [key(1), key(2)]) == {key(2): (version.chunk_id(key(2), 0),)}
    found = library.compare(version)
    assert (found.pending, found.wrong()) == ([key(1)], [])


def test_a_change_between_two_looks_is_no_difference(filled: MemoryStand, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is in no snapshot: what is written while it is compared is on its way and not wrong."""
    library, memory = filled.library, filled.memory
    version = library.version()
    inventory = memory.inventory

    def changing(connection: Connection, version: IndexVersion, scope: Scope) -> Any:
        monkeypatch.setattr(memory, "inventory", inventory)
        library.put(1, "t", "written meanwhile")
        library.delete(2)
        library.put(70, "t", "new meanwhile")
        library.apply(1, 2, 70)
        return inventory(connection, version, scope)

    monkeypatch.setattr(memory, "inventory", changing)
    found = library.compare(version)
    assert set(found.pending) == {key(1), key(2), key(70)}
    assert found.wrong() == []
    filled.right(version)


# ---- several versions, several stores -------------------------------------------------------------------------


def test_a_store_that_is_down_holds_up_no_other_index(
    filled: MemoryStand, run_loop: RunLoop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sophia")
    library = filled.library
    outside = library.version()
    inside = library.index.model_copy(update={"name": "inside", "store": StorePerProfile(local="pgvector")})
    both = library.catalog.model_copy(update={"indexes": (inside, library.index)})
    filled.memory.down = True
    run_loop(library.indexer(both))
    library.put(1, "t", "while one of two is down")
    within = next(v for v in active_versions(library.connection) if v.index_name == "inside")
    library.level(within)
    until(lambda: "waits, others go on" in caplog.text, "word of it")
    filled.memory.down = False
    filled.level(outside)
    until(lambda: "its store answers again" in caplog.text, "word of its return")


def test_a_store_that_hangs_holds_up_no_index_in_another(
    filled: MemoryStand, run_loop: RunLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process has a loop for each kind of store."""
    library = filled.library
    outside = library.version()
    inside = library.index.model_copy(update={"name": "inside", "store": StorePerProfile(local="pgvector")})
    both = library.catalog.model_copy(update={"indexes": (inside, library.index)})
    monkeypatch.setattr(indexer_module, "Stores", lambda settings: library.stores)
    loops = indexers(both, library.database, library.settings, observe=lambda version, lane, figures: None)
    assert [loop.kind for loop in loops] == ["pgvector", "weaviate"]
    hanging, go_on = threading.Event(), threading.Event()

    def hang(writes: Any) -> None:
        hanging.set()
        go_on.wait(60)

    filled.memory.before = hang
    for loop in loops:
        run_loop(loop, wait=False)
    try:
        library.put(1, "t", "while one of two hangs")
        until(hanging.is_set, "the write that hangs")
        until(lambda: any(v.index_name == "inside" for v in active_versions(library.connection)), "the other version")
        library.level(next(v for v in active_versions(library.connection) if v.index_name == "inside"))
        assert not go_on.is_set()
    finally:
        go_on.set()
    filled.level(outside)


def test_a_store_that_is_down_at_the_start_is_begun_later(
    stand: MemoryStand, run_loop: RunLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer_module, "TRY_AGAIN_SECONDS", 0.05)
    library = stand.library
    library.put(1, "t", "text")
    stand.memory.down = True
    run_loop(library.indexer())
    assert active_versions(library.connection) == []
    stand.memory.down = False
    until(lambda: active_versions(library.connection), "the version")
    stand.level()


def test_an_index_whose_store_has_no_settings_is_left_out(
    library: Library, run_loop: RunLoop, caplog: pytest.LogCaptureFixture
) -> None:
    outside = library.index.model_copy(
        update={"name": "outside", "store": StorePerProfile(local="weaviate"), "class_name": "Documents"}
    )
    both = library.catalog.model_copy(update={"indexes": (library.index, outside)})
    library.stores = Stores(library.settings)
    library.put(1, "t", "text")
    run_loop(library.indexer(both))
    library.level()
    assert caplog.text.count("SOPHIA_WEAVIATE_URL") == 1
    assert [v.index_name for v in active_versions(library.connection)] == ["documents"]


def test_a_model_that_cannot_be_loaded_ends_no_other_index(
    library: Library, run_loop: RunLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = library.catalog.model(library.index.model).model_copy(update={"name": "gone", "version": "gone"})
    broken = library.index.model_copy(update={"name": "broken", "model": "gone"})
    both = changed(library.catalog, indexes=(broken, library.index), models=(*library.catalog.models, other))

    def load(model: Any, precision: Any, settings: Any) -> Any:
        if model.name == "gone":
            raise ConfigurationError("model 'gone' cannot be loaded; put its files back")
        return library.embedder

    monkeypatch.setattr(indexer_module, "load_embedder", load)
    library.put(1, "t", "text")
    run_loop(library.indexer(both))
    version = next(v for v in ready(library) if v.index_name == "documents")
    library.level(version)
    assert caplog.text.count("put its files back") == 1


def ready(library: Library) -> list[IndexVersion]:
    return active_versions(library.connection)


def test_whoever_names_no_store_is_told(filled: MemoryStand) -> None:
    with pytest.raises(ConfigurationError, match="'weaviate', and the caller names none"):
        IN_DATABASE.of(filled.library.version())


def test_an_index_moves_to_another_store_and_back(library: Library) -> None:
    """The store is a part of a version: a move is a switch between two versions."""
    for number in range(5):
        library.put(number, f"title {number}", f"text {number}")
    library.repair()
    inside, at_home = library.version(), library.catalog
    stand = MemoryStand(library)
    outside = library.version()
    library.repair(version=outside)
    assert promote(library.connection, outside, stand.store(outside)).switched
    assert text_of(1) in stand.served_by_name(outside)
    retire(library.connection, inside, stand.store(inside))
    # The view went with the last version that it could read.
    assert library.connection.execute("SELECT to_regclass('indexes.documents')").fetchone() == (None,)
    again = library.version(at_home)
    library.repair(version=again)
    promote(library.connection, again, stand.store(again))
    assert len(library.connection.execute("SELECT 1 FROM indexes.documents").fetchall()) == 5
    retire(library.connection, outside, stand.store(outside))
    assert stand.memory.objects == {}


# ---- the public name ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["promote.after_commit", "publication.before", "publication.after"])
def test_a_switch_that_died_on_its_way_is_finished_by_whoever_comes_next(filled: MemoryStand, point: str) -> None:
    library = filled.library
    old = library.version()
    publication.settle(library.connection, library.stores)
    new_catalog = library.with_index(template="{body}")
    new = library.version(new_catalog)
    library.repair(version=new)
    with dying(point), pytest.raises(Killed), library.database.connect("dead") as dead:
        promote(dead, new, filled.store(new))
    # Searches through Sophia are right from the switch on.
    assert serving_version(library.connection, new.index_name).id == new.id
    assert (text_of(1) in filled.served_by_name(old)) == (point != "publication.after")
    # Ending the old one would leave the name without a place.
    with pytest.raises(TemporaryError, match="public name"):
        retire(library.connection, old, filled.store(old))
    publication.settle(library.connection, library.stores)
    assert "text 1" in filled.served_by_name(new)
    retire(library.connection, old, filled.store(old))
    assert list(filled.memory.objects) == [new.store_name]


def test_a_switch_while_the_store_is_down(
    filled: MemoryStand, run_loop: RunLoop, caplog: pytest.LogCaptureFixture
) -> None:
    library = filled.library
    old = library.version()
    publication.settle(library.connection, library.stores)
    new_catalog = library.with_index(template="{body}")
    new = library.version(new_catalog)
    library.repair(version=new)
    filled.memory.down = True
    assert promote(library.connection, new, filled.store(new)).switched
    assert "moved by the indexer" in caplog.text
    filled.memory.down = False
    assert text_of(1) in filled.served_by_name(old)
    run_loop(library.indexer(new_catalog))
    until(lambda: "text 1" in filled.served_by_name(new), "the indexer to move the name")


@pytest.mark.parametrize("point", ["retire.after_drop", "drop.after"])
def test_an_end_that_died_on_its_way_is_finished(filled: MemoryStand, point: str) -> None:
    library = filled.library
    old = library.version()
    new = library.version(library.with_index(template="{body}"))
    library.repair(version=new)
    promote(library.connection, new, filled.store(new))
    with dying(point), pytest.raises(Killed), library.database.connect("dead") as dead:
        retire(dead, old, filled.store(old))
    # The very same version cannot be begun on top of what is still there.
    with pytest.raises(TemporaryError, match="still to be removed"):
        ensure_version(library.connection, library.catalog, library.index, "local")
    long_after(library.connection)
    publication.settle(library.connection, library.stores)
    assert list(filled.memory.objects) == [new.store_name]
    library.catalog = library.catalog.model_copy()
    again = library.version()
    library.repair(version=again)
    filled.right(again)


def test_a_version_in_use_is_not_dropped_under_a_request(filled: MemoryStand) -> None:
    library, memory = filled.library, filled.memory
    old = library.version()
    new = library.version(library.with_index(template="{body}"))
    library.repair(version=new)
    promote(library.connection, new, filled.store(new))
    memory.late = True
    library.put(1, "t", "under way")
    with pytest.raises(TemporaryError):
        library.apply(1, version=old)
    with pytest.raises(HeldError):
        retire(library.connection, old, filled.store(old))
    assert old.store_name in memory.objects
    long_after(library.connection)
    publication.settle(library.connection, library.stores)
    assert list(memory.objects) == [new.store_name]


# ---- erasure --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["erase.after_commit", "erase.outside"])
def test_an_erasure_that_died_is_done_by_the_same_command(filled: MemoryStand, point: str) -> None:
    library = filled.library
    version = library.version()
    library.delete(3)
    chunks = held_ids(library.connection, version, [key(3)])
    with dying(point), pytest.raises(Killed), library.database.connect("dead") as dead:
        erase(dead, "documents", key(3), stores=library.stores, patience=0.2)
    # What a store that removes by ids needs is kept until it has done so.
    assert len(chunks[key(3)]) > 3
    assert held_ids(library.connection, version, [key(3)]) == chunks
    assert library.connection.execute("SELECT 1 FROM sophia.documents WHERE key = %s", [key(3)]).fetchone() is None
    long_after(library.connection)
    erase(library.connection, "documents", key(3), stores=library.stores, patience=0.2)
    assert library.connection.execute("SELECT 1 FROM sophia.ledger WHERE key = %s", [key(3)]).fetchone() is None
    assert filled.store(version).chunks_of(library.connection, version, key(3)) == []
    filled.right(version)


def test_an_erasure_waits_for_what_is_under_way(filled: MemoryStand) -> None:
    library, memory = filled.library, filled.memory
    version = library.version()
    library.put(3, "long", LONG[:3000])
    memory.late = True
    with pytest.raises(TemporaryError):
        library.apply(3)
    library.delete(3)
    with pytest.raises(TemporaryError, match=r"not yet from documents v1.*run this again"):
        erase(library.connection, "documents", key(3), stores=library.stores, patience=0.0)
    memory.land()
    long_after(library.connection)
    done = erase(library.connection, "documents", key(3), stores=library.stores, patience=0.2)
    assert done.removed[version.label] > 0
    filled.right(version)


def test_an_erasure_leaves_what_came_anew(filled: MemoryStand) -> None:
    library = filled.library
    version = library.version()
    library.delete(3)
    with dying("erase.after_commit"), pytest.raises(Killed), library.database.connect("dead") as dead:
        erase(dead, "documents", key(3), stores=library.stores, patience=0.2)
    library.put(3, "t", "another row")
    library.apply(3)
    clock = library.rows(3)[0].clock
    old = removal.erase_left(library.connection, version, filled.store(version), key(3), clock._replace(ordinal=0), 0.2)
    assert old == 0
    filled.right(version)


def test_an_erasure_of_a_store_that_is_down_says_so_and_is_done_later(filled: MemoryStand, run_loop: RunLoop) -> None:
    library = filled.library
    version = library.version()
    library.delete(3)
    filled.memory.down = True
    with pytest.raises(TemporaryError, match="run this again"):
        erase(library.connection, "documents", key(3), stores=library.stores, patience=0.2)
    filled.memory.down = False
    # Also the indexer, when it finds what was begun. The shard is free: the store was not reached.
    library.connection.execute("UPDATE sophia.ledger SET updated_at = '-infinity' WHERE state = 'pending'")
    run_loop(library.indexer())
    until(lambda: not library.pending(version), "the indexer to take it up")
    assert filled.store(version).chunks_of(library.connection, version, key(3)) == []


@pytest.mark.parametrize("work", ["drop", "erase"])
def test_who_was_halted_removes_nothing(filled: MemoryStand, monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    """Meanwhile another process may have done it, and the version or the key may have come anew under the same ids."""
    library, memory = filled.library, filled.memory
    version = library.version()

    def long_ago(*args: Any) -> shards.ShardLeases:
        taken = shards.take(*args)
        return replace(taken, asked=taken.asked - 60)

    def remove() -> None:
        if work == "drop":
            retire(library.connection, version, filled.store(version))
        else:
            erase(library.connection, "documents", key(3), stores=library.stores, patience=0.0)

    if work == "drop":
        new = library.version(library.with_index(template="{body}"))
        library.repair(version=new)
        promote(library.connection, new, filled.store(new))
    else:
        library.delete(3)
    with monkeypatch.context() as patched:
        patched.setattr(removal, "take", long_ago)
        with pytest.raises(TemporaryError, match="halted"):
            remove()
    assert any(stored.key == key(3) for stored in memory.objects[version.store_name].values())
    # Its shards are free: it has sent nothing.
    if work == "drop":
        publication.settle(library.connection, library.stores)
        assert version.store_name not in memory.objects
    else:
        remove()
        filled.right(version)


# ---- leases ---------------------------------------------------------------------------------------------------


def test_a_shard_is_free_when_its_time_is_over_and_not_when_its_session_ends(filled: MemoryStand) -> None:
    library = filled.library
    version = library.version()
    names = shards.all_shards(version)
    with library.database.connect("first") as first, shards.turn(first, names), first.transaction():
        taken = shards.take(first, names, version.label, 60.0)
    with pytest.raises(HeldError) as held:
        shards.take(library.connection, names, version.label, 60.0)
    assert 30 < held.value.seconds <= 60
    long_after(library.connection)
    again = shards.take(library.connection, names, version.label, 60.0)
    assert all(new == old + 1 for new, old in zip(again.epochs, taken.epochs, strict=True))
    with pytest.raises(TemporaryError, match="taken over"):
        taken.give_back(library.connection)
    again.give_back(library.connection)
    shards.take(library.connection, names, version.label, 1.0).give_back(library.connection)


def test_a_repair_waits_for_what_a_dead_writer_left(filled: MemoryStand) -> None:
    """Nothing else waits for it, so it outlasts the lease: here a second."""
    library = filled.library
    version = library.version()
    with dying("external.pending"), pytest.raises(Killed), library.database.connect("dead") as dead:
        library.writer(version).apply(dead, library.rows(1, 2), repair=True)
    library.connection.execute(
        "UPDATE sophia.leases SET expires_at = clock_timestamp() + interval '1 s' WHERE name LIKE 'shard/%%' "
        "AND expires_at > clock_timestamp()"
    )
    session = Session.open(
        library.connection,
        library.catalog,
        library.index,
        "local",
        lambda _: library.embedder,
        library.settings,
        run="test",
        stores=library.stores,
    )
    repair_version(library.connection, session, range(2), batch=10, deep=False)
    filled.right(version)


def test_the_indexer_embeds_nothing_for_a_shard_that_is_not_free(filled: MemoryStand, run_loop: RunLoop) -> None:
    """When it comes free is known, so its bulk documents wait for that, and are not embedded at each poll."""
    library = filled.library
    version = library.version()
    with library.database.connect("dead") as dead, dead.transaction():
        shards.take(dead, shards.all_shards(version), version.label, 300.0)
    library.put(1, "t", "in bulk, behind a dead writer", bulk=True)
    indexer = library.indexer(scan_hours=0.0, poll_seconds=0.01)
    looks = 0
    wait = indexer._wait

    def counted(connection: Connection) -> None:
        nonlocal looks
        looks += 1
        wait(connection)

    indexer._wait = counted  # type: ignore[method-assign]
    running = run_loop(indexer)
    until(lambda: any(lane.held_until for lane in indexer._lanes), "the shard that is not free")
    embedded, looked = len(library.embedder.texts), looks
    until(lambda: looks > looked + 10, "ten more looks")
    assert len(library.embedder.texts) == embedded
    long_after(library.connection)
    for lane in indexer._lanes:
        lane.held_until.clear()
    filled.level(version)
    running.stop()


def test_the_line_for_all_shards_is_waited_for_once_in_all(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where each of the locks comes free just in time: here they do so one after another, for seconds."""
    monkeypatch.setattr(shards, "TURN_MS", 250)
    names = [f"shard/0/{number}" for number in range(shards.MOST_SHARDS)]
    one_by_one = (
        "SELECT count(pg_advisory_unlock(hashtextextended('sophia.shard:' || name, 0))) FROM "
        "(SELECT name, pg_sleep(0.2) FROM unnest(%s::text[]) name OFFSET 0) slowly"
    )
    with database.connect("before") as before, database.connect("waits") as waits:
        before.execute(shards.Q["lock_shards"], {"names": names})

        def free() -> None:
            with contextlib.suppress(psycopg.errors.QueryCanceled):
                before.execute(one_by_one, [names])

        frees = threading.Thread(target=free, daemon=True)
        frees.start()
        with shards.turn(waits, names):
            held = waits.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()"
            ).fetchone()
        before.cancel()
        frees.join()
    assert held is not None
    assert held[0] < shards.MOST_SHARDS


# ---- what stores read from the ledger -------------------------------------------------------------------------


def test_the_ledger_says_what_is_vouched_for_and_what_may_be_there(filled: MemoryStand) -> None:
    library = filled.library
    version = library.version()
    connection = library.connection
    long = len(filled.store(version).chunks_of(connection, version, key(3)))
    assert long > 3
    library.put(3, "short", "now")
    with dying("external.pending"), pytest.raises(Killed), library.database.connect("dead") as dead:
        library.writer(version).apply(dead, library.rows(3))
    keys = [key(1), key(3), key(99)]
    assert live_ids(connection, version, keys) == {key(1): (version.chunk_id(key(1), 0),)}
    held = held_ids(connection, version, keys)
    assert held[key(3)] == tuple(version.chunk_id(key(3), number) for number in range(long))
    assert set(held) == {key(1), key(3)}
    assert set(vector_hashes(connection, version, keys)) == {(key(1), 0), (key(3), 0)}
    long_after(connection)
    library.apply(3)
    assert held_ids(connection, version, [key(3)]) == {key(3): (version.chunk_id(key(3), 0),)}
    filled.right(version)


def test_a_sample_of_the_ledger_is_even_and_the_same_for_a_seed(filled: MemoryStand) -> None:
    library = filled.library
    version = library.version()
    first = ledger_sample(library.connection, version, 200, "a")
    assert first == ledger_sample(library.connection, version, 200, "a")
    # One whose bucket is close behind another's is seldom next to a random one.
    assert len({name for name, _ in first}) >= 8
    assert {name for name, _ in first} <= {key(number) for number in range(12)}
    few = ledger_sample(library.connection, version, 3, "a")
    assert 1 <= len(few) <= 3
    assert any(ledger_sample(library.connection, version, 3, seed) != few for seed in "bcdef")
    for name, chunk in first:
        assert version.chunk_id(name, chunk) in held_ids(library.connection, version, [Key(name)])[Key(name)]
    library.delete(1)
    library.apply(1)
    assert key(1) not in {name for name, _ in ledger_sample(library.connection, version, 200, "a")}
