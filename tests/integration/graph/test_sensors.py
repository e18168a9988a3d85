"""Sensors and schedules: what they ask for, what they report, and that they say why they do nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import psycopg
import pytest

from sensors import backlog
from sensors.backlog import backlog_requests
from sensors.failures import LONGEST, REASON, run_failure_reason
from sophia_assets.keys import asset_key, shard_names
from tests.integration.graph.conftest import Graph

INDEX = asset_key("indexes", "documents")
COLLECTION = asset_key("collections", "documents")
AWAY = "postgresql://postgres@127.0.0.1:1/none"


def _tick(graph: Graph, sensor: str, cursor: str | None = None) -> dg.SensorExecutionData:
    definition = graph.definitions.get_sensor_def(sensor)
    with dg.build_sensor_context(
        instance=graph.instance,
        cursor=cursor,
        definitions=graph.definitions,
        resources=graph.definitions.resources,
        sensor_name=sensor,
    ) as context:
        return definition.evaluate_tick(context)


def _reason(tick: dg.SensorExecutionData) -> str:
    return tick.skip_message or ""


def _index_live(graph: Graph) -> None:
    """What the indexer leaves behind when it has caught up: the version's position is its collection's."""
    graph.connection.execute(
        "UPDATE sophia.index_versions v SET position = c.position "
        "FROM sophia.collections c WHERE c.id = v.collection_id"
    )


# ---- progress ------------------------------------------------------------------------------------------------


def test_the_first_tick_reports_collections_and_takes_versions_as_they_are(graph: Graph) -> None:
    graph.put(*range(10))
    graph.repair()
    tick = _tick(graph, "inbox_progress_sensor")
    assert [(type(e).__name__, e.asset_key) for e in tick.asset_events] == [("AssetObservation", COLLECTION)]
    cursor = json.loads(tick.cursor or "")
    assert cursor["collections"] == {"documents": 10}
    assert list(cursor["versions"].values()) == [10]


def test_a_tick_after_nothing_moved_says_so_and_keeps_the_cursor(graph: Graph) -> None:
    graph.put(1)
    graph.repair()
    first = _tick(graph, "inbox_progress_sensor")
    again = _tick(graph, "inbox_progress_sensor", first.cursor)
    assert again.asset_events == []
    assert _reason(again) == "no position has moved"
    assert json.loads(again.cursor or "") == json.loads(first.cursor or "")


def test_many_changes_are_one_observation_and_one_materialization_a_shard(graph: Graph) -> None:
    graph.put(1)
    graph.repair()
    _index_live(graph)
    first = _tick(graph, "inbox_progress_sensor")
    for _ in range(20):
        graph.put(5, 6)
    _index_live(graph)
    tick = _tick(graph, "inbox_progress_sensor", first.cursor)
    events: list[Any] = list(tick.asset_events)
    observations = [e for e in events if e.asset_key == COLLECTION]
    materializations = [e for e in events if e.asset_key == INDEX]
    rows = graph.connection.execute("SELECT bucket / 4096 FROM sophia.documents WHERE key IN ('[5]', '[6]')")
    touched = {shard_names(16)[row[0]] for row in rows}
    assert len(observations) == 1
    assert [e.partition for e in materializations] == sorted(touched)
    assert observations[0].tags == {"dagster/data_version": "1:41"}
    assert observations[0].metadata["dagster/row_count"].value == 3
    assert all(e.tags["dagster/data_version"].endswith(":41") for e in materializations)
    assert set(materializations[0].metadata) == {
        *("dagster/row_count", "rows", "vectors", "lag_ms", "lag_p95_ms", "parked", "state"),
        *("verified", "drift_found", "drift_repaired"),
    }
    # The same tick again, as after a lost answer, reports the same; the next one nothing.
    assert len(_tick(graph, "inbox_progress_sensor", first.cursor).asset_events) == len(events)
    assert _tick(graph, "inbox_progress_sensor", tick.cursor).asset_events == []


def test_the_indexers_own_progress_is_what_is_reported(graph: Graph) -> None:
    """Nothing is reported before the store has it: the position is the version's, not the inbox's."""
    graph.put(1)
    graph.repair()
    _index_live(graph)
    first = _tick(graph, "inbox_progress_sensor")
    graph.put(2)
    tick = _tick(graph, "inbox_progress_sensor", first.cursor)
    assert [e.asset_key for e in tick.asset_events] == [COLLECTION]


@pytest.mark.parametrize("sensor", ["inbox_progress_sensor", "backlog_sensor"])
def test_a_database_that_is_away_is_a_reason_and_keeps_the_cursor(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, sensor: str
) -> None:
    monkeypatch.setenv("SOPHIA_DATABASE_URL", AWAY)
    tick = _tick(graph, sensor, '{"collections": {"documents": 1}}')
    assert "cannot connect" in _reason(tick)
    assert tick.run_requests == []
    if sensor == "inbox_progress_sensor":
        assert tick.cursor == '{"collections": {"documents": 1}}'


# ---- backlog -------------------------------------------------------------------------------------------------


def test_without_a_backlog_no_run_is_asked_for_and_the_numbers_are_said(graph: Graph) -> None:
    assert _reason(_tick(graph, "backlog_sensor")) == "no index is served here yet"
    graph.put(1)
    graph.repair()
    graph.put(2, 3)
    assert _reason(_tick(graph, "backlog_sensor")) == "documents: 2 waiting"


def test_a_backlog_asks_once_for_every_shard(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    graph.put(1)
    graph.repair()
    graph.put(*range(2, 8))
    monkeypatch.setattr(backlog, "BACKLOG", 5)
    requests = list(_tick(graph, "backlog_sensor").run_requests or [])
    assert [request.partition_key for request in requests] == shard_names(16)
    assert {request.job_name for request in requests} == {"repair_indexes"}
    assert {tuple(request.asset_selection or []) for request in requests} == {(INDEX,)}
    assert len({request.run_key for request in requests}) == 16
    # The same backlog has the same run keys, so Dagster runs it once; one that grew has others.
    assert {r.run_key for r in _tick(graph, "backlog_sensor").run_requests or []} == {r.run_key for r in requests}
    graph.put(9)
    assert not {r.run_key for r in _tick(graph, "backlog_sensor").run_requests or []} & {r.run_key for r in requests}
    # What is asked for can be run.
    job = graph.definitions.get_job_def("repair_indexes")
    result = job.execute_in_process(
        instance=graph.instance, partition_key=requests[0].partition_key, asset_selection=[INDEX], raise_on_error=False
    )
    assert result.success


def test_the_threshold_is_where_it_says(graph: Graph) -> None:
    class Status:
        index, fingerprint, backlog = "documents", "f", 9_999

    assert backlog_requests([(Status, "repair_indexes", 16, 1)], 10_000)[0] == []
    Status.backlog = 10_000
    assert len(backlog_requests([(Status, "repair_indexes", 16, 1)], 10_000)[0]) == 16


# ---- failures ------------------------------------------------------------------------------------------------


def _failed(graph: Graph, error: Exception) -> str:
    @dg.op
    def fails() -> None:
        raise error

    @dg.job
    def failing() -> None:
        fails()

    result = failing.execute_in_process(instance=graph.instance, raise_on_error=False)
    context = dg.build_run_status_sensor_context(
        sensor_name="run_failure_reason",
        dagster_event=result.get_run_failure_event(),
        dagster_instance=graph.instance,
        dagster_run=result.dagster_run,
    ).for_run_failure()
    run_failure_reason(context)
    run = graph.instance.get_run_by_id(result.run_id)
    assert run is not None
    return run.tags[REASON]


def test_a_failed_run_says_the_step_and_the_innermost_error(graph: Graph) -> None:
    error = ValueError("outer")
    error.__cause__ = psycopg.OperationalError("the disk\nis full")
    assert _failed(graph, error) == "fails: psycopg.OperationalError: the disk is full"


def test_a_long_reason_is_cut(graph: Graph) -> None:
    assert len(_failed(graph, ValueError("x" * 5_000))) == LONGEST


# ---- schedules -----------------------------------------------------------------------------------------------


def test_the_nightly_repair_asks_for_every_shard_once_a_night(graph: Graph) -> None:
    def requests(night: datetime) -> list[dg.RunRequest]:
        schedule = graph.definitions.get_schedule_def("nightly_repair")
        with dg.build_schedule_context(
            instance=graph.instance,
            scheduled_execution_time=night,
            repository_def=graph.definitions.get_repository_def(),
        ) as context:
            return list(schedule.evaluate_tick(context).run_requests or [])

    first = requests(datetime(2026, 11, 20, 3, tzinfo=UTC))
    assert [request.partition_key for request in first] == shard_names(16)
    assert [request.run_key for request in first] == [f"nightly_repair:2026-11-20:{name}" for name in shard_names(16)]
    assert not {r.run_key for r in first} & {r.run_key for r in requests(datetime(2026, 11, 21, 3, tzinfo=UTC))}
