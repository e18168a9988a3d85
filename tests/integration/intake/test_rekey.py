"""Another key of a collection in the catalog: noticed by whoever would keep documents by it, and begun anew with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.rows import TupleRow
from starlette.testclient import TestClient

from sophia import inbox
from sophia.catalog import Catalog
from sophia.database import Database
from sophia.errors import ConfigurationError
from sophia.estuary.intake.documents import Feed
from sophia.estuary.intake.rekey import Rekeyed, rekey
from sophia.estuary.intake.take import feeds
from sophia.indexing.versions import ensure_version
from sophia.services.intake.app import create_intake
from sophia.settings import Settings
from tests.catalogs import changed
from tests.intake import NAME, body, document
from tests.integration.intake.inbox_view import Deliveries
from tests.waiting import until

Connection = psycopg.Connection[TupleRow]
REFUSED = r"kept by the key \(id\), and the catalog's key is \(part, id\).*`sophia estuary rekey documents`"


@pytest.fixture
def rekeyed(fed: Catalog) -> Catalog:
    """The catalog, in which the collection has got another key."""
    (collection,) = fed.collections
    return changed(fed, collections=(collection.model_copy(update={"key": ("part", "id")}),))


def test_another_key_in_the_catalog_is_refused_until_a_person_begins_anew(
    deliveries: Deliveries, connection: Connection, fed: Catalog, rekeyed: Catalog
) -> None:
    deliveries.take(document(1, 1, part="a"), document(2, 2, part="a"), document(9, 3, "u", {"id": 8}, part="a"))
    assert deliveries.rereads()
    # The indexer begins with the catalog too, and says nothing of keys.
    ensure_version(connection, rekeyed, rekeyed.index("documents"), "local")
    with pytest.raises(ConfigurationError, match=REFUSED):
        feeds(connection, rekeyed, "local")
    with pytest.raises(ConfigurationError, match="has the key"):
        rekey(connection, changed(fed), "documents", "local")
    before = deliveries.rows()
    expected = Rekeyed(("id",), ("part", "id"), 3)
    assert rekey(connection, rekeyed, "documents", "local", dry_run=True) == expected
    assert deliveries.rows() == before
    assert rekey(connection, rekeyed, "documents", "local") == expected
    assert {row for _, row, _ in deliveries.rows().values()} == {None}
    assert deliveries.rereads() == {}
    # Who began before that has the former key: nothing is taken by it.
    with pytest.raises(ConfigurationError, match=r"kept by the key \(part, id\), and the catalog's key is \(id\)"):
        deliveries.take(document(1, 4, part="a"))
    anew = Deliveries(connection, feeds(connection, rekeyed, "local")[NAME])
    anew.take(document(1, 5, part="a", title="again"))
    live = {key: row for key, (_, row, _) in anew.rows().items() if row is not None}
    assert live == {'["a",1]': {"id": 1, "part": "a", "title": "again"}}


def test_who_begins_with_the_former_key_does_not_set_it_back(
    deliveries: Deliveries, connection: Connection, fed: Catalog, rekeyed: Catalog, database: Database
) -> None:
    """It begins while the other key is being set, and looks before that is done."""
    deliveries.take(document(1, 1, part="a"))
    former = changed(fed, collections=(fed.collections[0].model_copy(update={"key": ("id",)}),))
    with ThreadPoolExecutor(1) as pool, database.connect("other") as other:
        with connection.transaction():
            rekey(connection, rekeyed, "documents", "local")
            begun = pool.submit(feeds, other, former, "local")
            waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock')"
            with database.connect("looks") as looks:
                until(lambda: looks.execute(waiting, [other.info.backend_pid]).fetchone() == (True,), "the lock")
        with pytest.raises(ConfigurationError, match=r"kept by the key \(part, id\), and the catalog's key is \(id\)"):
            begun.result(60)
    assert feeds(connection, rekeyed, "local")[NAME].key == ("part", "id")


def test_a_service_with_a_former_key_answers_503_and_ends(
    settings: Settings, database: Database, connection: Connection
) -> None:
    inbox.ensure_collection(connection, "documents", ["part", "id"])
    service = create_intake(settings.intake, database, {NAME: Feed("documents", NAME, ("id",))})
    with TestClient(service.app, "http://127.0.0.1") as client:
        json = {"Content-Type": "application/json"}
        answer = client.post(f"/estuary/{NAME}", content=body(document(1, 1)), headers=json)
    assert answer.status_code == 503
    assert isinstance(service.error, ConfigurationError)
