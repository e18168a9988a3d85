"""Estuary, looked at once a minute: observations, checks, and the runs that an event calls for.

Only what changed since the last tick is reported: figures as observations, verdicts as check evaluations, an alert as
one failed run, a changed schema as one run of the plan. The cursor holds what was reported. A look at Estuary that
fails is a reason to skip and a failing check of the source; nothing else changes by it, and the next tick looks again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import psycopg
from psycopg.rows import TupleRow

from jobs.estuary import ALERT_JOB, PLAN_JOB
from jobs.jobs import AssetJob
from resources import DatabaseResource, EstuaryResource
from sophia.catalog import Catalog
from sophia.errors import ConfigurationError, TemporaryError
from sophia.estuary.control.alerts import alert_kind
from sophia.estuary.control.document_shape import Shape
from sophia.estuary.control.observation import CollectionView, Look
from sophia.estuary.control.schema_watch import SchemaMemory, mismatches, shapes_of
from sophia.estuary.control.verdicts import Verdict, alert_line, away, stalled, verdicts
from sophia.settings import Profile, load_settings
from sophia_assets.estuary import check_key, estuary_sources, evaluation, observations

SENSOR = "estuary_sensor"
# Runs of one tick; what is left over comes with the next one.
MOST_RUNS = 20
Event = dg.AssetObservation | dg.AssetMaterialization | dg.AssetCheckEvaluation
# Whether a check passed when it was evaluated last; a check that never was is left out.
Shown = Mapping[dg.AssetCheckKey, bool]


@dataclass(frozen=True, slots=True)
class Tick:
    """What a tick reports and asks for, what the next one compares with, and why if it asks for no run."""

    events: Sequence[Event]
    requests: Sequence[dg.RunRequest]
    cursor: Mapping[str, Any]
    calm: str


def estuary_tick(
    cursor: Mapping[str, Any],
    look: Look,
    found: Sequence[Verdict],
    shown: Shown,
    shapes: Mapping[str, Shape],
    catalog: Catalog,
) -> Tick:
    """The tick after a look. Pure.

    Args:
        cursor: {"observed": {asset: hash}, "checks": {check: what made it fail}, "alerts": [run keys of those that
            fire], "schemas": {collection: memory}} as reported last.
        found: the look's verdicts.
        shown: whether each check passed when it was evaluated last, by whomever.
        shapes: the columns of each collection's documents.
    """
    observed = dict(cursor.get("observed", {}))
    events: list[Event] = []
    for observation in observations(look):
        asset = "/".join(observation.asset_key.path)
        seen = _hash({name: value.value for name, value in observation.metadata.items()})
        if observed.get(asset) != seen:
            events.append(observation)
            observed[asset] = seen
    changed, checks = _changed_checks(cursor.get("checks", {}), shown, found)
    alerts, firing = _alert_requests(set(cursor.get("alerts", ())), look, catalog)
    plans, schemas = _plan_requests(cursor.get("schemas", {}), look, shapes, MOST_RUNS - len(alerts))
    return Tick(
        [*events, *changed],
        [*alerts, *plans],
        {"observed": observed, "checks": checks, "alerts": firing, "schemas": schemas},
        f"{len(look.collections)} collections and {len(look.alerts)} alerts looked at; "
        f"{len(events) + len(changed) or 'nothing'} new",
    )


def away_tick(cursor: Mapping[str, Any], found: Sequence[Verdict], shown: Shown, reason: str) -> Tick:
    """The tick where Estuary could not be looked at: only that is new. Pure."""
    changed, checks = _changed_checks(cursor.get("checks", {}), shown, found)
    return Tick(changed, [], {**cursor, "checks": checks}, reason)


def _changed_checks(
    reported: Mapping[str, str], shown: Shown, found: Sequence[Verdict]
) -> tuple[list[dg.AssetCheckEvaluation], dict[str, str]]:
    """Evaluations of the verdicts that are not as they were reported, and all of them as they are now.

    A run may have evaluated a check since, at a worse moment: what is shown of it counts as well.
    """
    checks = dict(reported)
    changed = []
    for verdict in found:
        key = check_key(verdict)
        name = f"{key.asset_key.to_user_string()}:{key.name}"
        state = "passed" if verdict.passed else _hash([verdict.severity, *verdict.fired])
        if checks.get(name) != state or shown.get(key) is not verdict.passed:
            changed.append(evaluation(verdict))
            checks[name] = state
    return changed, checks


def _alert_requests(asked: set[str], look: Look, catalog: Catalog) -> tuple[list[dg.RunRequest], list[str]]:
    """A run for each grave alert that is new, and the keys of all that fire and were asked for."""
    wanted: dict[str, dict[str, str]] = {}
    for alert in look.alerts:
        if alert_kind(alert.type).severity == "ERROR":
            key = f"estuary-alert:{alert.type}:{alert.name}:{alert.fired_at.isoformat()}"
            wanted[key] = _alert_config(alert.name, alert.type, alert.fired_at.isoformat(), alert_line(alert))
    for view in look.collections:
        wanted |= _stalled(view, float(catalog.collection(view.name).max_lag_seconds))
    new = [key for key in wanted if key not in asked][:MOST_RUNS]
    requests = [
        dg.RunRequest(
            run_key=key,
            job_name=ALERT_JOB,
            run_config={"ops": {"estuary_alert": {"config": wanted[key]}}},
            tags={"sophia/estuary": wanted[key]["kind"]},
        )
        for key in new
    ]
    return requests, sorted([*(key for key in wanted if key in asked), *new])


def _stalled(view: CollectionView, max_lag_seconds: float) -> dict[str, dict[str, str]]:
    """An alert of our own for a collection whose documents wait, if Estuary has none for it yet."""
    sentences = stalled(view, max_lag_seconds)
    if not sentences or any(alert_kind(alert.type).severity == "ERROR" for alert in view.alerts):
        return {}
    since = min(d.movement.waiting_since for d in view.deliveries if d.movement.waiting_since).isoformat()
    text = f"{view.estuary}: {'; '.join(sentences)} (read the task's logs in Estuary and those of the intake)"
    return {f"estuary-stalled:{view.estuary}:{since}": _alert_config(view.estuary, "stalled", since, text)}


def _alert_config(name: str, kind: str, since: str, text: str) -> dict[str, str]:
    return {"name": name, "kind": kind, "since": since, "text": text}


def _plan_requests(
    remembered: Mapping[str, Any], look: Look, shapes: Mapping[str, Shape], most: int
) -> tuple[list[dg.RunRequest], dict[str, Any]]:
    """A run of the plan if a schema changed, and what is known of the schemas now."""
    schemas = dict(remembered)
    changes: list[str] = []
    tokens: list[str] = []
    for view in look.collections:
        seen = shapes.get(view.name, {})
        known = SchemaMemory.from_json(schemas[view.name]) if view.name in schemas else None
        now, changed = (known or SchemaMemory(None, None, {})).then(view, seen)
        if known is not None and changed:
            if most < 1:
                # Remembered as it was, so that the next tick finds the change again.
                continue
            changes += [f"{view.name}: {change}" for change in changed]
            tokens.append(f"{view.name}:{now.token}")
        schemas[view.name] = now.to_json()
    if not changes:
        return [], schemas
    request = dg.RunRequest(
        run_key=f"estuary-schema:{_hash(tokens)}",
        job_name=PLAN_JOB,
        tags={"sophia/reason": "; ".join(changes)[:250]},
    )
    return [request], schemas


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


def _look(
    context: dg.SensorEvaluationContext,
    connection: psycopg.Connection[TupleRow],
    estuary: EstuaryResource,
    catalog: Catalog,
    profile: Profile,
) -> Tick:
    """Look at Estuary, at the documents that came, and at what the graph shows of both."""
    cursor = json.loads(context.cursor) if context.cursor else {}
    try:
        look = estuary.look(connection, catalog, profile, remember=True)
    except (ConfigurationError, TemporaryError) as error:
        found = away(estuary_sources(catalog, profile), str(error))
        return away_tick(cursor, found, _shown(context.instance, found), str(error))
    shapes = shapes_of(connection, look)
    found = verdicts(look, catalog, mismatches(catalog, look, shapes))
    return estuary_tick(cursor, look, found, _shown(context.instance, found), shapes, catalog)


def _shown(instance: dg.DagsterInstance, found: Sequence[Verdict]) -> Shown:
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key([check_key(v) for v in found])
    # One that a run only planned, and did not come to, has another state.
    states = {"SUCCEEDED": True, "FAILED": False}
    return {key: states[record.status.value] for key, record in records.items() if record.status.value in states}


def build_estuary_sensor(catalog: Catalog, profile: Profile, jobs: Sequence[AssetJob]) -> list[dg.SensorDefinition]:
    """The sensor over the jobs of Estuary; none where Estuary feeds nothing in this profile."""
    if not estuary_sources(catalog, profile):
        return []

    @dg.sensor(
        name=SENSOR,
        jobs=list(jobs),
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports what Estuary says of its collections; alerts and changed schemas start runs.",
    )
    def estuary_sensor(
        context: dg.SensorEvaluationContext, database: DatabaseResource, estuary: EstuaryResource
    ) -> dg.SensorResult:
        if load_settings().estuary.token is None:
            return dg.SensorResult(skip_reason="Estuary is not observed: SOPHIA_ESTUARY__TOKEN is not set")
        try:
            with database.connect() as connection:
                tick = _look(context, connection, estuary, catalog, profile)
        except TemporaryError as error:
            # Our own database, of which Estuary knows nothing.
            return dg.SensorResult(skip_reason=str(error), cursor=context.cursor)
        return dg.SensorResult(
            asset_events=list(tick.events),
            run_requests=list(tick.requests),
            cursor=json.dumps(tick.cursor),
            skip_reason=None if tick.requests else tick.calm,
        )

    return [estuary_sensor]
