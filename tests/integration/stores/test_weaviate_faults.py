"""Weaviate away, slow, cut off and back; several writers at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from sophia.errors import TemporaryError
from sophia.stores.base import Query
from sophia.stores.weaviate import WeaviateStore
from tests.integration.stores.documents import key
from tests.integration.stores.weaviate_stand import GRPC, URL, WeaviateStand, unit, weaviate_settings
from tests.tcp_gate import TcpGate

pytestmark = pytest.mark.weaviate


class Gated:
    """A store whose two connections lead through gates."""

    def __init__(self, stand: WeaviateStand, **group: float) -> None:
        parts = urlsplit(URL or "")
        self.http = TcpGate(f"{parts.hostname}:{parts.port}")
        self.grpc = TcpGate(GRPC or f"{parts.hostname}:50051")
        settings = weaviate_settings(
            stand.settings, f"http://{self.http.address}", self.grpc.address, **({"write_seconds": 60.0} | group)
        )
        self.store = WeaviateStore(settings)

    def shut(self) -> None:
        self.http.shut()
        self.grpc.shut()

    def open(self) -> None:
        self.http.open()
        self.grpc.open()

    def close(self) -> None:
        self.store.close()
        self.shut()


@pytest.fixture
def gated(weaviate: WeaviateStand) -> Iterator[Gated]:
    made = Gated(weaviate)
    yield made
    made.close()


def test_down_and_back(weaviate: WeaviateStand, gated: Gated) -> None:
    version = weaviate.version()
    store = gated.store
    query = Query(vector=unit(1, 1)[0], text="")
    gated.shut()
    document = weaviate.document(version, 1, ["a"])
    for _ in range(2):
        with pytest.raises(TemporaryError, match="Weaviate at"):
            store.write(weaviate.connection, version, [document], "test")
        with pytest.raises(TemporaryError, match="Weaviate at"):
            store.search(weaviate.connection, version, query)
    gated.open()
    assert store.write(weaviate.connection, version, [document], "test") == {}
    assert [hit.content for hit in store.search(weaviate.connection, version, query)] == ["a"]


def test_a_cut_in_the_middle_of_a_batch_leaves_all_of_it(weaviate: WeaviateStand, gated: Gated) -> None:
    version = weaviate.version()
    documents = [weaviate.document(version, number, [f"a{number}", f"b{number}"]) for number in range(300)]
    gated.store.write(weaviate.connection, version, documents[:1], "test")
    for size in (1_000, 200_000):
        gated.grpc.cut_after = size
        assert weaviate.write(version, *documents, store=gated.store) == {}
        assert weaviate.store.counts(weaviate.connection, version) == (300, 600)
    assert gated.grpc.cuts == 2
    gated.grpc.cut_after = 500
    gone = [weaviate.document(version, number, None, held=2) for number in range(250)]
    assert weaviate.write(version, *gone, store=gated.store) == {}
    assert gated.grpc.cuts == 3
    assert set(weaviate.contents(version)) == {key(number) for number in range(250, 300)}


def test_a_server_that_does_not_answer_holds_nobody_longer_than_said(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    slow = Gated(weaviate, write_seconds=2.5, read_seconds=0.5)
    try:
        slow.store.write(weaviate.connection, version, [weaviate.document(version, 1, ["a"])], "test")
        slow.http.holding = slow.grpc.holding = True
        with pytest.raises(TemporaryError, match="did not answer within"):
            slow.store.write(weaviate.connection, version, [weaviate.document(version, 2, ["b"])], "test")
        with pytest.raises(TemporaryError, match=r"did not answer within 0\.5 s"):
            slow.store.search(weaviate.connection, version, Query(vector=unit(1, 1)[0], text=""))
        slow.http.holding = slow.grpc.holding = False
        slow.http.cut()
        slow.grpc.cut()
        assert slow.store.write_seconds == 2.5
        slow.store.write(weaviate.connection, version, [weaviate.document(version, 3, ["c"])], "test")
    finally:
        slow.close()


def test_several_writers_of_disjoint_keys(weaviate: WeaviateStand) -> None:
    """Two clients, each used by two threads."""
    version = weaviate.version()
    other = WeaviateStore(weaviate.settings)
    faults: list[BaseException] = []
    batches = [
        [weaviate.document(version, number, [f"t{number}"]) for number in range(first, first + 25)]
        for first in range(0, 400, 25)
    ]

    def work(store: WeaviateStore, mine: list[list[object]]) -> None:
        try:
            for batch in mine:
                assert store.write(weaviate.connection, version, batch, "test") == {}  # type: ignore[arg-type]
        except BaseException as error:
            faults.append(error)

    threads = [
        threading.Thread(target=work, args=(store, batches[part::4]))
        for part, store in enumerate((weaviate.store, other, weaviate.store, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    other.close()
    assert faults == []
    assert weaviate.contents(version) == {key(number): [f"t{number}"] for number in range(400)}
    assert len(weaviate.stored(version)) == 400


def test_a_store_that_was_closed_connects_again(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    weaviate.store.close()
    weaviate.store.close()
    weaviate.write(version, weaviate.document(version, 1, ["a"]))
    assert weaviate.store.counts(weaviate.connection, version) == (1, 1)


def test_two_that_make_a_class_at_once(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    weaviate.store.publish(weaviate.connection, weaviate.version(metadata=("module",)))
    weaviate.store.drop(weaviate.connection, version)
    stores = [WeaviateStore(weaviate.settings) for _ in range(4)]
    faults: list[BaseException] = []

    def work(store: WeaviateStore) -> None:
        try:
            store.ensure(weaviate.connection, version)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for store in stores:
        store.close()
    assert faults == []
    assert weaviate.store.counts(weaviate.connection, version) == (0, 0)
