"""Estuary in the graph: a control plane over HTTP, a real database, ticks that are applied as the daemon does."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from psycopg.rows import TupleRow

from sensors import backlog
from sensors.failures import REASON, run_failure_reason
from sophia import inbox
from sophia.catalog import Catalog
from sophia.documents import Change, Clock, canonical_key
from sophia.estuary.catalog.publish import rendered_models
from sophia.estuary.catalog.references import filled
from sophia.estuary.control import client, observation
from sophia.settings import Settings
from sophia_assets.definitions import build_definitions
from sophia_assets.keys import asset_key, shard_names
from tests.catalogs import changed, replaced
from tests.embedders import HashEmbedder
from tests.estuary_control.answers import Answer
from tests.estuary_control.plane import TOKEN, Plane, Spec, plane

CONVERSATIONS = "sophia/conversations"
CAPTURE = "sophia/app/source-postgres"
WEBHOOK = "sophia/webhook"
COLLECTION = asset_key("collections", "conversations")
SOURCE = asset_key("sources", "estuary")
MEMORY = asset_key("indexes", "memory")
AWAY = "postgresql://postgres@127.0.0.1:1/none"
_positions = itertools.count(1)


class Observed:
    """A graph whose conversations come from Estuary, the daemon's part, and Estuary."""

    def __init__(
        self,
        definitions: dg.Definitions,
        connection: psycopg.Connection[TupleRow],
        estuary: Plane,
        instance: dg.DagsterInstance,
    ) -> None:
        self.definitions = definitions
        self.connection = connection
        self.estuary = estuary
        self.instance = instance
        self.cursor: str | None = None
        self.at = datetime(2026, 11, 21, 12, tzinfo=UTC)

    def put(self, *numbers: int, bulk: bool = False, **columns: Any) -> None:
        """Documents of the collection, in the inbox."""
        inbox.ensure_collection(self.connection, "conversations", ["id"])
        row = {"user_id": "u", "channel": "c", "content": "text", "importance": 0.5, "tags": [], "source": "s"}
        row |= {"created_at": "2026-11-21T10:00:00Z", **columns}
        changes = [
            Change(canonical_key([n]), "c", Clock(1, next(_positions), 0), {"id": n, **row}, bulk=bulk) for n in numbers
        ]
        with self.connection.transaction():
            inbox.accept(self.connection, "conversations", changes)

    def evaluate(self, name: str = "estuary_sensor") -> dg.SensorExecutionData:
        """One tick; nothing comes of it."""
        sensor = self.definitions.get_sensor_def(name)
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            definitions=self.definitions,
            resources=self.definitions.resources,
            sensor_name=name,
        ) as context:
            return sensor.evaluate_tick(context)

    def tick(self, minutes: float = 1.0) -> dg.SensorExecutionData:
        """One tick so many minutes after the last, with its events reported and its cursor kept."""
        self.at += timedelta(minutes=minutes)
        tick = self.evaluate()
        for event in tick.asset_events:
            self.instance.report_runless_asset_event(event)
        self.cursor = tick.cursor
        return tick

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """Execute what a tick asked for."""
        assert request.job_name is not None
        return self.definitions.get_job_def(request.job_name).execute_in_process(
            instance=self.instance,
            run_config=request.run_config,
            tags=request.tags,
            partition_key=request.partition_key,
            asset_selection=request.asset_selection,
            raise_on_error=False,
        )

    def check(self, key: dg.AssetKey, name: str) -> tuple[bool, str, str]:
        """The latest evaluation of a check: passed, severity, description."""
        (record,) = self.instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(key, name), limit=1
        )
        assert record.event is not None
        found = record.event.get_dagster_event().asset_check_evaluation_data
        return found.passed, found.severity.value, found.description or ""

    def figures(self, key: dg.AssetKey) -> dict[str, Any]:
        """Metadata of the latest observation."""
        (record,) = self.instance.fetch_observations(key, limit=1).records
        assert record.asset_observation is not None
        return {name: value.value for name, value in record.asset_observation.metadata.items()}


@pytest.fixture(scope="module")
def fed(catalog: Catalog) -> dg.Definitions:
    """The graph of a catalog whose conversations come from Estuary; building it takes a second."""
    collection = catalog.collection("conversations")
    source = collection.source.model_copy(update={"local": "estuary"})
    collections = replaced(catalog.collections, collection, source=source)
    return build_definitions(changed(catalog, collections=collections), "local")


@pytest.fixture
def observed(
    fed: dg.Definitions,
    configured: Settings,
    connection: psycopg.Connection[TupleRow],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Observed]:
    with plane() as estuary, dg.DagsterInstance.ephemeral() as instance:
        monkeypatch.setenv("SOPHIA_ESTUARY__URL", estuary.url)
        monkeypatch.setenv("SOPHIA_ESTUARY__TOKEN", TOKEN)
        monkeypatch.setattr(client, "sleep", lambda _: None)
        estuary.specs += [
            Spec(CAPTURE, "capture"),
            Spec(CONVERSATIONS, "collection", written_by=(CAPTURE,), read_by=(WEBHOOK,)),
            Spec(WEBHOOK, "materialization"),
            # Another environment's tree lies below production's prefix.
            Spec("sophia/staging/webhook", "materialization", health="ERROR", summary="not ours"),
        ]
        found = Observed(fed, connection, estuary, instance)
        # The time of a look, so that minutes pass without waiting for them.
        looked = observation.look
        monkeypatch.setattr(observation, "look", lambda *given, **more: looked(*given[:-1], found.at, **more))
        yield found


def _flow(observed: Observed, captured: int, delivered: int, published: datetime | None = None) -> None:
    at = published or observed.at
    observed.estuary.binding(CAPTURE, CONVERSATIONS, "captured", captured)
    observed.estuary.binding(WEBHOOK, CONVERSATIONS, "materialized", delivered, at.timestamp())


def _names(tick: dg.SensorExecutionData) -> list[str]:
    return [type(event).__name__ for event in tick.asset_events]


# ---- observations --------------------------------------------------------------------------------------------


def test_a_look_is_an_observation_of_the_collection_and_of_its_source(observed: Observed) -> None:
    observed.put(1, 2)
    _flow(observed, 1200, 1100)
    observed.estuary.sample("logged_errors_total", 3, task=WEBHOOK)
    observed.connection.execute(
        "INSERT INTO sophia.estuary_watermarks (collection, published_at_max) VALUES (%s, '2026-11-21T11:59:00Z')",
        [CONVERSATIONS],
    )
    tick = observed.tick()
    seen = {"/".join(e.asset_key.path): e for e in tick.asset_events if isinstance(e, dg.AssetObservation)}
    assert set(seen) == {"collections/conversations", "sources/estuary"}
    assert seen["collections/conversations"].tags == {"dagster/data_version": "1:2"}
    figures = observed.figures(COLLECTION)
    assert figures == {
        "position": 2,
        "generation": 1,
        "estuary_docs": 1200.0,
        "estuary_bytes": 120_000.0,
        "estuary_delivered_docs": 1100.0,
        "estuary_lag_seconds": 0.0,
        "estuary_waiting_seconds": 0.0,
        "estuary_errors": 3.0,
        "estuary_failures": 0.0,
        "estuary_alerts": 0,
        "estuary_watermark": "2026-11-21T11:59:00+00:00",
        "source_time": "none yet",
    }
    source = observed.figures(SOURCE)
    assert (source["tasks"], source["tasks_failing"], source["estuary_docs"]) == (2, 0, 1200.0)


def test_a_tick_after_nothing_moved_reports_nothing_and_says_so(observed: Observed) -> None:
    observed.put(1)
    _flow(observed, 10, 10)
    observed.tick()
    cursor = observed.cursor
    again = observed.tick()
    assert again.asset_events == []
    assert again.run_requests == []
    assert again.skip_message == "1 collections and 0 alerts looked at; nothing new"
    assert json.loads(observed.cursor or "") == json.loads(cursor or "")


def test_lag_is_said_while_documents_flow_and_not_of_a_quiet_collection(observed: Observed) -> None:
    _flow(observed, 10, 10)
    observed.tick()
    _flow(observed, 20, 20, published=observed.at - timedelta(seconds=30))
    observed.tick(minutes=1)
    assert observed.figures(COLLECTION)["estuary_lag_seconds"] == 90.0
    assert observed.check(COLLECTION, "estuary_moves") == (
        False,
        "WARN",
        "90 s behind its source, more than 60 s",
    )
    # An hour without a document: nothing is late.
    observed.tick(minutes=60)
    assert observed.figures(COLLECTION)["estuary_lag_seconds"] == 0.0
    assert observed.check(COLLECTION, "estuary_moves")[0]


def test_a_new_month_is_no_stall_and_no_negative_flow(observed: Observed) -> None:
    _flow(observed, 5_000, 5_000)
    observed.tick()
    _flow(observed, 0, 0)
    observed.tick()
    _flow(observed, 3, 3)
    observed.tick()
    assert observed.check(COLLECTION, "estuary_moves")[0]
    assert observed.figures(COLLECTION)["estuary_waiting_seconds"] == 0.0


# ---- alerts --------------------------------------------------------------------------------------------------


def test_an_alert_is_a_failing_check_with_estuarys_text_until_it_is_resolved(observed: Observed) -> None:
    observed.tick()
    assert observed.check(COLLECTION, "estuary_alerts") == (True, "ERROR", "no alert fires")
    observed.estuary.fire("shard_failed", CAPTURE, "connector exited with code 1; ask ops@example.com")
    observed.estuary.fire("shard_failed", "sophia/staging/webhook", "of another environment")
    tick = observed.tick()
    text = (
        "shard_failed of sophia/app/source-postgres since 2026-11-21 10:00 UTC: connector exited with code 1; ask … "
        "(read the task's logs in Estuary)"
    )
    assert observed.check(COLLECTION, "estuary_alerts") == (False, "ERROR", text)
    assert observed.check(SOURCE, "estuary_alerts") == (False, "ERROR", text)
    # One run for it, which fails with the text, and is named as failed runs are.
    (request,) = tick.run_requests or []
    result = observed.run(request)
    assert not result.success
    context = dg.build_run_status_sensor_context(
        sensor_name="run_failure_reason",
        dagster_event=result.get_run_failure_event(),
        dagster_instance=observed.instance,
        dagster_run=result.dagster_run,
    ).for_run_failure()
    run_failure_reason(context)
    run = observed.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert "connector exited with code 1" in run.tags[REASON]
    # It goes on firing: nothing is said twice.
    assert observed.tick().run_requests == []
    observed.estuary.resolve("shard_failed", CAPTURE)
    cleared = observed.tick()
    assert cleared.run_requests == []
    assert observed.check(COLLECTION, "estuary_alerts")[0]
    assert observed.check(SOURCE, "estuary_alerts")[0]
    # The same alert fires again: a new one.
    observed.estuary.fire("shard_failed", CAPTURE, "again", "2026-11-21T13:00:00Z")
    (second,) = observed.tick().run_requests or []
    assert second.run_key != request.run_key


def test_an_alert_that_only_warns_starts_no_run(observed: Observed) -> None:
    observed.estuary.fire("task_idle", WEBHOOK, "task has been idle for 30 days")
    observed.estuary.fire("missing_payment_method", "sophia/", None)
    tick = observed.tick()
    assert tick.run_requests == []
    assert observed.check(COLLECTION, "estuary_alerts")[:2] == (False, "WARN")
    assert "no payment method is on file" in observed.check(SOURCE, "estuary_alerts")[2]


def test_many_alerts_are_asked_for_in_turn(observed: Observed) -> None:
    for number in range(25):
        observed.estuary.fire("shard_failed", f"sophia/task-{number:02}", "x")
    first, second, third = (observed.tick().run_requests or [] for _ in range(3))
    assert [len(requests) for requests in (first, second, third)] == [20, 5, 0]
    assert len({request.run_key for request in [*first, *second]}) == 25


# ---- stalls --------------------------------------------------------------------------------------------------


def test_documents_that_nothing_takes_are_a_failing_check_and_one_run(observed: Observed) -> None:
    _flow(observed, 100, 100)
    observed.tick()
    _flow(observed, 150, 100, published=observed.at)
    observed.tick()
    assert observed.check(COLLECTION, "estuary_moves")[0]
    tick = observed.tick(minutes=4)
    passed, severity, text = observed.check(COLLECTION, "estuary_moves")
    assert (passed, severity) == (False, "ERROR")
    assert text.startswith("sophia/webhook takes nothing although documents are written, for 240 s")
    (request,) = tick.run_requests or []
    assert not observed.run(request).success
    assert observed.tick().run_requests == []
    _flow(observed, 160, 160)
    observed.tick()
    assert observed.check(COLLECTION, "estuary_moves")[0]


def test_a_stall_that_estuary_has_an_alert_for_is_one_run(observed: Observed) -> None:
    _flow(observed, 100, 100)
    observed.tick()
    _flow(observed, 150, 100)
    observed.tick()
    observed.estuary.fire("data_movement_stalled", WEBHOOK, "task has not moved data in the last 2h")
    (request,) = observed.tick(minutes=10).run_requests or []
    assert "data_movement_stalled" in (request.run_key or "")


def test_a_webhook_that_never_took_anything_is_seen(observed: Observed) -> None:
    observed.estuary.binding(CAPTURE, CONVERSATIONS, "captured", 10)
    observed.tick()
    observed.estuary.binding(CAPTURE, CONVERSATIONS, "captured", 20)
    observed.tick()
    observed.tick(minutes=5)
    assert "sophia/webhook takes nothing" in observed.check(COLLECTION, "estuary_moves")[2]


def test_tasks_that_fail_or_are_off_and_a_collection_that_is_not_published_are_named(observed: Observed) -> None:
    webhook = observed.estuary.specs[2]
    webhook.health, webhook.summary = "ERROR", "task shard failed, next retry at 2026-11-21T12:00:00Z"
    observed.tick()
    assert observed.check(COLLECTION, "estuary_moves") == (False, "ERROR", f"sophia/webhook fails: {webhook.summary}")
    # Estuary's text moves on with each retry; that is no news.
    webhook.summary = "task shard failed, next retry at 2026-11-21T12:05:00Z"
    assert observed.tick().asset_events == []
    webhook.health, webhook.disabled = "TASK_DISABLED", True
    observed.tick()
    assert observed.check(COLLECTION, "estuary_moves") == (False, "WARN", "sophia/webhook is disabled")
    observed.estuary.specs = [spec for spec in observed.estuary.specs if spec.name != CONVERSATIONS]
    observed.tick()
    assert (
        "sophia/conversations is not published; run `sophia estuary plan`"
        in observed.check(COLLECTION, "estuary_moves")[2]
    )


# ---- schemas -------------------------------------------------------------------------------------------------


def test_a_new_column_starts_the_plan_once_and_the_plan_says_what_does_not_fit(observed: Observed) -> None:
    observed.put(1, 2)
    assert observed.tick().run_requests == []
    assert observed.check(COLLECTION, "estuary_schema") == (True, "WARN", "documents and catalog fit")
    observed.put(3, sentiment="glad")
    tick = observed.tick()
    (request,) = tick.run_requests or []
    assert request.job_name == "estuary_plan_job"
    assert request.tags["sophia/reason"] == "conversations: new column sentiment"
    result = observed.run(request)
    assert result.success
    checks = {(e.asset_key, e.check_name): e for e in result.get_asset_check_evaluations()}
    schema = checks[COLLECTION, "estuary_schema"]
    assert not schema.passed
    assert schema.description == "column sentiment is not in the catalog; add it to the collection's columns"
    assert checks[SOURCE, "estuary_answers"].passed
    planned = {event.asset_key for event in result.get_asset_materialization_events()}
    assert asset_key("estuary", "production") in planned
    assert observed.tick().run_requests == []


def test_a_column_of_another_type_starts_the_plan(observed: Observed) -> None:
    observed.put(1, importance=0.5)
    observed.tick()
    observed.put(2, importance={"score": 1})
    (request,) = observed.tick().run_requests or []
    assert "column importance is now also object (it was number)" in request.tags["sophia/reason"]
    text = observed.check(COLLECTION, "estuary_schema")[2]
    assert text.startswith("column importance is number, object and the catalog says number, string; change")


def test_an_index_that_reads_a_column_that_no_document_has_is_named(observed: Observed) -> None:
    inbox.ensure_collection(observed.connection, "conversations", ["id"])
    change = Change(canonical_key([1]), "c", Clock(1, next(_positions), 0), {"id": 1, "content": "text"})
    with observed.connection.transaction():
        inbox.accept(observed.connection, "conversations", [change])
    observed.tick()
    text = observed.check(COLLECTION, "estuary_schema")[2]
    assert "no document has column user_id, which index memory, conversation_search, conversations_pinecone" in text


def test_a_publication_and_an_inferred_schema_start_the_plan(observed: Observed) -> None:
    collection = observed.estuary.specs[1]
    collection.schema_hash = "aaaa"
    observed.tick()
    collection.publication = "ffffffffffffffff"
    (first,) = observed.tick().run_requests or []
    assert first.tags["sophia/reason"] == "conversations: sophia/conversations was published anew"
    collection.schema_hash = "bbbb"
    (second,) = observed.tick().run_requests or []
    assert "Estuary inferred another schema" in second.tags["sophia/reason"]
    assert first.run_key != second.run_key
    assert observed.tick().run_requests == []


def test_the_plan_says_what_is_not_published_as_rendered(observed: Observed, catalog: Catalog) -> None:
    """Published values of variables that are not set here are no difference; neither is what else Estuary keeps."""
    rendered = rendered_models(catalog, "production")
    observed.estuary.specs = [
        Spec(name, kind, model=filled(model, {}, partly=True)) for (kind, name), model in rendered.items()
    ]
    by_name = {spec.name: spec for spec in observed.estuary.specs}
    by_name[WEBHOOK].model["endpoint"]["connector"]["config"]["address"] = "https://intake.example.com/estuary/"
    by_name[WEBHOOK].model["expectPubId"] = "0a1b2c3d4e5f6071"
    observed.estuary.specs.append(Spec("sophia/staging/webhook", "materialization", model={}))
    assert _plan(observed) == (True, "published as rendered")
    by_name[CONVERSATIONS].model["key"] = ["/user_id"]
    del observed.estuary.specs[observed.estuary.specs.index(by_name[WEBHOOK])]
    passed, text = _plan(observed)
    assert not passed
    assert text.startswith("change collection sophia/conversations; add materialization sophia/webhook; ")
    assert text.endswith("; run `sophia estuary plan`")
    assert "intake.example.com" not in text


def _plan(observed: Observed) -> tuple[bool, str]:
    assert observed.run(dg.RunRequest(job_name="estuary_plan_job")).success
    passed, _, text = observed.check(SOURCE, "estuary_catalog")
    return passed, text


def test_a_plan_while_estuary_is_away_says_only_that(observed: Observed) -> None:
    observed.estuary.close()
    result = observed.run(dg.RunRequest(job_name="estuary_plan_job"))
    assert result.success
    evaluated = {e.check_name for e in result.get_asset_check_evaluations() if e.asset_key in (SOURCE, COLLECTION)}
    assert evaluated == {"estuary_answers"}


def test_what_a_run_found_at_a_worse_moment_is_put_right_by_the_next_tick(observed: Observed) -> None:
    observed.tick()
    observed.estuary.faults += [Answer(401)]
    assert observed.run(dg.RunRequest(job_name="estuary_plan_job")).success
    assert not observed.check(SOURCE, "estuary_answers")[0]
    observed.tick()
    assert observed.check(SOURCE, "estuary_answers")[0]
    assert observed.check(COLLECTION, "estuary_moves")[0]
    assert observed.tick().asset_events == []


# ---- new documents -------------------------------------------------------------------------------------------


@pytest.fixture
def indexed(observed: Observed, embedder: HashEmbedder) -> Observed:
    """The index `memory` serves, with one document."""
    observed.put(1)
    names = shard_names(16)
    tags = {"dagster/asset_partition_range_start": names[0], "dagster/asset_partition_range_end": names[-1]}
    result = observed.definitions.get_job_def("repair_indexes").execute_in_process(
        instance=observed.instance, tags=tags, asset_selection=[MEMORY]
    )
    assert result.success
    observed.connection.execute(
        "UPDATE sophia.index_versions v SET position = c.position FROM sophia.collections c "
        "WHERE c.id = v.collection_id"
    )
    return observed


def test_new_documents_in_bulk_become_runs_of_the_shards_that_lack_them(
    indexed: Observed, embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a backfill at Estuary brings them: many, and never on the live lane."""
    monkeypatch.setattr(backlog, "BACKLOG", 6)
    indexed.put(*range(2, 7), bulk=True)
    assert indexed.evaluate("backlog_sensor").run_requests == []
    indexed.put(7, bulk=True)
    requests = list(indexed.evaluate("backlog_sensor").run_requests or [])
    rows = indexed.connection.execute("SELECT DISTINCT bucket / 4096 FROM sophia.documents WHERE bulk ORDER BY 1")
    assert [request.partition_key for request in requests] == [shard_names(16)[row[0]] for row in rows]
    assert {request.tags["sophia/reason"] for request in requests} == {"6 new documents in bulk"}
    before = len(embedder.texts)
    for request in requests:
        assert request.job_name == "repair_indexes"
        assert indexed.run(request).success
    # One text, which all of them have: each run embeds it, or finds it beside another document.
    assert len(embedder.texts) > before
    (held,) = indexed.connection.execute("SELECT count(*) FROM indexes.memory").fetchone() or (0,)
    assert held == 7
    assert indexed.evaluate("backlog_sensor").skip_message == "memory: 0 waiting"


def test_while_its_runs_are_under_way_no_more_are_asked_for(
    indexed: Observed, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "BACKLOG", 3)
    indexed.put(*range(2, 7), bulk=True)
    (first, *_) = indexed.evaluate("backlog_sensor").run_requests or []
    run = indexed.definitions.get_job_def("repair_indexes")
    started = indexed.instance.create_run_for_job(run, tags=first.tags, status=dg.DagsterRunStatus.STARTED)
    indexed.put(8, 9, bulk=True)
    tick = indexed.evaluate("backlog_sensor")
    assert tick.run_requests == []
    assert tick.skip_message == "memory: 7 new documents in bulk, runs are under way"
    indexed.instance.delete_run(started.run_id)
    assert indexed.evaluate("backlog_sensor").run_requests
    # What our own capture brings in bulk is left to the indexer.
    indexed.definitions = build_definitions(catalog, "local")
    assert indexed.evaluate("backlog_sensor").skip_message == "memory: 0 waiting"


# ---- away ----------------------------------------------------------------------------------------------------


def test_an_estuary_that_is_away_is_said_once_and_changes_nothing_else(observed: Observed) -> None:
    observed.put(1)
    observed.estuary.fire("shard_failed", CAPTURE, "x")
    observed.tick()
    before = json.loads(observed.cursor or "")
    observed.estuary.tokens.clear()
    tick = observed.tick()
    assert _names(tick) == ["AssetCheckEvaluation"]
    assert "make a new one and set SOPHIA_ESTUARY__TOKEN" in (tick.skip_message or "")
    assert observed.check(SOURCE, "estuary_answers")[0] is False
    # What was true before is not known to have ended.
    assert observed.check(COLLECTION, "estuary_alerts")[0] is False
    again = observed.tick()
    assert again.asset_events == []
    assert "SOPHIA_ESTUARY__TOKEN" in (again.skip_message or "")
    observed.estuary.tokens[TOKEN] = "sophia/"
    back = observed.tick()
    assert observed.check(SOURCE, "estuary_answers") == (True, "WARN", "it answers")
    assert back.run_requests == []
    assert json.loads(observed.cursor or "") == before


def test_a_database_that_is_away_is_a_reason(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    observed.tick()
    before = json.loads(observed.cursor or "")
    monkeypatch.setenv("SOPHIA_DATABASE_URL", AWAY)
    tick = observed.tick()
    assert "cannot connect" in (tick.skip_message or "")
    assert tick.asset_events == []
    assert json.loads(observed.cursor or "") == before


def test_without_a_token_nothing_is_asked_and_the_reason_is_said(
    observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOPHIA_ESTUARY__TOKEN")
    tick = observed.evaluate()
    assert tick.skip_message == "Estuary is not observed: SOPHIA_ESTUARY__TOKEN is not set"
    assert (tick.asset_events, tick.run_requests, observed.estuary.requests) == ([], [], [])


def test_where_estuary_feeds_nothing_the_graph_has_nothing_of_it(catalog: Catalog) -> None:
    repository = build_definitions(catalog, "local").get_repository_def()
    assert not repository.has_sensor_def("estuary_sensor")
    assert not {job.name for job in repository.get_all_jobs()} & {"estuary_plan_job", "estuary_alert_job"}
