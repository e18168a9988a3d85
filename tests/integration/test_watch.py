"""What a repair says of itself while it runs: how far it is, and how much there is to do by a sample."""

from __future__ import annotations

import itertools
import threading

import pytest

from sophia import inbox
from sophia.documents import Change, Clock, Origin, canonical_key
from sophia.indexing import watch
from sophia.indexing.repair import Session, repair_version
from sophia.indexing.watch import RepairProgress
from tests.integration.library import COLLECTION, Library

DOCUMENTS = 3_000


@pytest.fixture
def shelf(library: Library) -> Library:
    """Many documents, none of them indexed."""
    changes = [
        Change(
            canonical_key([number]),
            "c",
            Clock(1, number, 0),
            {"id": number, "title": "t", "body": f"text {number}", "module": "m", "kind": "k"},
            origin=Origin(number),
        )
        for number in range(1, DOCUMENTS + 1)
    ]
    with library.connection.transaction():
        inbox.accept(library.connection, COLLECTION, changes)
    return library


def repaired(library: Library, shards: range, batch: int = 500) -> list[RepairProgress]:
    """Repair shards. Returns what was said."""
    steps: list[RepairProgress] = []
    session = Session.open(
        library.connection,
        library.catalog,
        library.index,
        "local",
        lambda _: library.embedder,
        library.settings,
        run="test",
    )
    repair_version(library.connection, session, shards, batch=batch, deep=False, progress=steps.append)
    return steps


def test_it_says_how_far_it_is_from_the_first_pass_to_the_last(shelf: Library) -> None:
    steps = repaired(shelf, range(2))
    assert len(steps) > DOCUMENTS / shelf.embedder.pass_size / 2, "it speaks between two forward passes"
    assert [step.done for step in steps if step.ended] == [1, 2]
    documents = [step.documents for step in steps]
    assert documents == sorted(documents)
    tokens = [step.embedding.cost.tokens for step in steps]
    assert tokens == sorted(tokens)
    assert all(step.embedding.total >= step.embedding.done == step.documents for step in steps)
    last = steps[-1]
    assert (last.documents, last.embedded, last.embedding.eta_seconds) == (DOCUMENTS, DOCUMENTS, 0.0)
    assert last.embedding.cost.texts == DOCUMENTS
    rests = [step.embedding.eta_seconds for step in steps if step.documents == documents[len(documents) // 2]]
    assert all(rest is not None and rest > 0 for rest in rests)


def test_what_there_is_to_do_is_estimated_by_a_sample(shelf: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    connection = shelf.connection
    version = shelf.version()

    class Watched:
        def execute(self, query: str, params: dict[str, int], prepare: bool) -> object:
            looked.append(params["width"])
            return connection.execute(query, params, prepare=prepare)

    # However slow this machine is.
    monkeypatch.setattr(watch, "LOOK_SECONDS", 60.0)
    found = watch._outstanding(Watched(), version, range(2))  # type: ignore[arg-type]
    assert found == pytest.approx(DOCUMENTS, rel=0.25)
    assert looked[-1] < 65536 / 2, "not all of it was read"
    assert all(later == 4 * earlier for earlier, later in itertools.pairwise(looked))
    repaired(shelf, range(1))
    one = watch._outstanding(connection, version, range(1, 2))
    assert watch._outstanding(connection, version, range(2)) == pytest.approx(one, rel=0.35)
    assert watch._outstanding(connection, version, range(1)) == 0


def test_a_few_documents_are_counted(library: Library) -> None:
    for number in range(7):
        library.put(number, body=f"text {number}")
    library.delete(3)
    assert watch._outstanding(library.connection, library.version(), range(2)) == 6
    library.repair()
    assert watch._outstanding(library.connection, library.version(), range(2)) == 0
    library.put(1, body="changed")
    library.delete(2)
    assert watch._outstanding(library.connection, library.version(), range(2)) == 2


def test_a_slow_look_is_the_last(shelf: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.0)
    version = shelf.version()
    exact = shelf.connection.execute("SELECT count(*) FROM sophia.documents WHERE bucket IN (0, 32768)").fetchone() or (
        0,
    )
    assert watch._outstanding(shelf.connection, version, range(2)) == exact[0] * 32768


def test_it_says_how_far_the_store_is_with_its_index(shelf: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held up by an older transaction until it was said, as a real build is by a long reader."""
    monkeypatch.setattr(watch, "BUILD_SECONDS", 0.01)
    version = shelf.version()
    shelf.repair()
    said = threading.Event()
    steps: list[RepairProgress] = []

    def note(step: RepairProgress) -> None:
        steps.append(step)
        # A look at its very beginning may come before.
        if "waiting for writers before build" in str(step):
            said.set()

    session = Session.open(
        shelf.connection, shelf.catalog, shelf.index, "local", lambda _: shelf.embedder, shelf.settings, run="test"
    )
    with shelf.database.connect("builder") as builder:
        with shelf.database.connect("writer") as writer, writer.transaction():
            writer.execute(f"LOCK TABLE indexes.{version.store_name} IN ROW EXCLUSIVE MODE")
            thread = threading.Thread(
                target=repair_version,
                args=(builder, session, range(2)),
                kwargs={"batch": 500, "deep": False, "progress": note},
            )
            thread.start()
            assert said.wait(60)
        thread.join(60)
        assert not thread.is_alive()
    lines = [str(step) for step in steps if step.building is not None]
    assert any(f"building {version.store_name}_field0: waiting for writers before build" in line for line in lines)
