"""One look at Estuary: what it says of the collections that it feeds us, beside what we have of them.

A look reads metrics, alerts and published specs, and compares them with the last look that was remembered in
`sophia.estuary_movements`. It changes nothing in Estuary. Names in Estuary are those of one environment's tree:
the one whose prefix is observed; what lies below another environment's prefix is not ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.catalog.models import Catalog, Collection, Environment
from sophia.catalog.models.base import Profile
from sophia.estuary.control.client import ControlPlane
from sophia.estuary.control.metrics_text import Binding, Metrics, TaskTotals
from sophia.estuary.control.movement import Movement, lag_seconds, moved_on
from sophia.estuary.control.shapes import Alert, LiveSpec
from sophia.estuary.naming import collection_name, fed_by_estuary, prefix_of, task_name
from sophia.settings import EstuarySettings

Connection = psycopg.Connection[TupleRow]
Q = sql.load("estuary_observation")
ENVIRONMENTS: tuple[Environment, ...] = ("development", "staging", "production")


@dataclass(frozen=True, slots=True)
class Position:
    """Our own side of a collection: how far the inbox is, and Estuary's watermark.

    `watermark`: all documents that were published up to this time were delivered and committed; None before the
    first. `id` is None while the inbox does not know the collection.
    """

    id: int | None
    generation: int
    position: int
    source_time: datetime | None
    watermark: datetime | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A materialization that brings a collection to us. `lag` in seconds, None if nothing can be said."""

    task: str
    docs: float
    movement: Movement
    lag: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionView:
    """What Estuary says of one collection, beside what we have of it.

    Attributes:
        name, estuary: its name in the catalog and in Estuary.
        source: the catalog's source of kind estuary that feeds it.
        written_docs, written_bytes: written to it this month.
        deliveries: what brings it to us.
        tasks: the published tasks that write it or bring it to us; `published` is its own spec, None if there is none.
        totals: what these tasks logged this month.
        alerts: those that fire for it or for one of these tasks.
    """

    name: str
    estuary: str
    source: str
    written_docs: float
    written_bytes: float
    deliveries: tuple[Delivery, ...]
    tasks: tuple[LiveSpec, ...]
    published: LiveSpec | None
    totals: TaskTotals
    alerts: tuple[Alert, ...]
    ours: Position

    @property
    def delivered_docs(self) -> float:
        """Documents that were brought to us this month."""
        return sum(delivery.docs for delivery in self.deliveries)

    @property
    def lag(self) -> float | None:
        """Seconds that the slowest delivery is behind; None while none flows."""
        return max((delivery.lag for delivery in self.deliveries if delivery.lag is not None), default=None)

    @property
    def waiting_seconds(self) -> float:
        """How long documents have been waiting that a delivery does not take."""
        return max((delivery.movement.waiting_seconds for delivery in self.deliveries), default=0.0)


@dataclass(frozen=True, slots=True)
class Look:
    """All of it at one moment. `whole` is false where a list had more pages than are read."""

    at: datetime
    prefix: str
    collections: tuple[CollectionView, ...]
    alerts: tuple[Alert, ...]
    specs: tuple[LiveSpec, ...]
    whole: bool


def observed_prefix(catalog: Catalog, settings: EstuarySettings) -> str:
    """The prefix that is observed, with its final slash: the setting, or production's."""
    return settings.prefix or prefix_of(catalog, "production")


def observed_environment(catalog: Catalog, prefix: str) -> Environment:
    """The environment whose tree lies at the prefix; a prefix of nobody's holds production's names."""
    return next((e for e in ENVIRONMENTS if prefix_of(catalog, e) == prefix), "production")


def other_prefixes(catalog: Catalog, prefix: str) -> tuple[str, ...]:
    """Prefixes of other environments that lie below this one; what is there is theirs."""
    prefixes = (prefix_of(catalog, environment) for environment in ENVIRONMENTS)
    return tuple(other for other in prefixes if other != prefix and other.startswith(prefix))


def fed_names(catalog: Catalog, profile: Profile, settings: EstuarySettings) -> dict[str, str]:
    """The collections that Estuary feeds, as {name in the catalog: name in the environment that is observed}."""
    fed = fed_by_estuary(catalog, profile)
    if not fed:
        return {}
    environment = observed_environment(catalog, observed_prefix(catalog, settings))
    return {collection.name: collection_name(catalog, collection, environment) for collection in fed}


def look(
    client: ControlPlane,
    connection: Connection,
    catalog: Catalog,
    profile: Profile,
    settings: EstuarySettings,
    at: datetime,
    *,
    remember: bool = False,
) -> Look:
    """Ask Estuary and compare with the look before that was remembered.

    Args:
        at: now, with its time zone.
        remember: whether the next look compares with this one; so does the sensor, once a minute.

    Raises:
        TemporaryError, ConfigurationError: see `ControlPlane`.
    """
    prefix = observed_prefix(catalog, settings)
    metrics = client.metrics(prefix)
    alerts, all_alerts = client.alerts(prefix)
    specs, all_specs = client.live_specs(prefix)
    collections = fed_by_estuary(catalog, profile)
    environment = observed_environment(catalog, prefix)
    names = fed_names(catalog, profile, settings)
    others = other_prefixes(catalog, prefix)
    specs = [spec for spec in specs if not spec.name.startswith(others)]
    alerts = [alert for alert in alerts if not alert.name.startswith(others)]
    published = {spec.name: spec for spec in specs}
    ours = positions(connection, names)
    before = _movements(connection, list(names.values()))
    webhooks = [task_name(catalog, webhook.name, environment) for webhook in catalog.estuary.webhooks]
    views = [
        _view(
            collection,
            names[collection.name],
            collection.source.for_profile(profile) or "",
            metrics,
            alerts,
            published,
            ours[collection.name],
            _deliveries(names[collection.name], webhooks, metrics, published, before, at),
        )
        for collection in collections
    ]
    if remember:
        _note(connection, views)
    return Look(at, prefix, tuple(views), tuple(alerts), tuple(specs), all_alerts and all_specs)


def _deliveries(
    estuary: str,
    webhooks: Sequence[str],
    metrics: Metrics,
    published: Mapping[str, LiveSpec],
    before: Mapping[tuple[str, str], Movement],
    at: datetime,
) -> tuple[Delivery, ...]:
    """The materializations that bring a collection to us: our webhooks; where none of them does, any."""
    bound = {binding.task: binding for binding in metrics.of(estuary) if binding.role == "materialized"}
    spec = published.get(estuary)
    readers = [name for name in (spec.read_by if spec else ()) if _kind(published, name) == "materialization"]
    known = list(dict.fromkeys([*bound, *readers]))
    tasks = [name for name in known if name in webhooks] or known
    totals = metrics.collections.get(estuary)
    written = totals.written_docs if totals else 0.0
    captured = max((b.published_at for b in metrics.of(estuary) if b.role == "captured"), default=0.0)
    deliveries = []
    for task in sorted(tasks):
        binding = bound.get(task) or Binding(task, estuary, "materialized")
        movement = moved_on(before.get((task, estuary)), binding.docs, written, at)
        lag = lag_seconds(movement, binding.published_at, captured)
        deliveries.append(Delivery(task, binding.docs, movement, lag))
    return tuple(deliveries)


def _kind(published: Mapping[str, LiveSpec], name: str) -> str | None:
    return published[name].kind if name in published else None


def _view(
    collection: Collection,
    estuary: str,
    source: str,
    metrics: Metrics,
    alerts: Sequence[Alert],
    published: Mapping[str, LiveSpec],
    ours: Position,
    deliveries: tuple[Delivery, ...],
) -> CollectionView:
    spec = published.get(estuary)
    writers = {b.task for b in metrics.of(estuary) if b.role == "captured"} | set(spec.written_by if spec else ())
    tasks = sorted(writers | {delivery.task for delivery in deliveries})
    logged = [metrics.tasks[name] for name in tasks if name in metrics.tasks]
    written = metrics.collections.get(estuary)
    return CollectionView(
        name=collection.name,
        estuary=estuary,
        source=source,
        written_docs=written.written_docs if written else 0.0,
        written_bytes=written.written_bytes if written else 0.0,
        deliveries=deliveries,
        tasks=tuple(published[name] for name in tasks if name in published),
        published=spec,
        totals=TaskTotals(
            warnings=sum(task.warnings for task in logged),
            errors=sum(task.errors for task in logged),
            failures=sum(task.failures for task in logged),
            transactions=sum(task.transactions for task in logged),
        ),
        alerts=tuple(alert for alert in alerts if alert.name == estuary or alert.name in tasks),
        ours=ours,
    )


def positions(connection: Connection, names: Mapping[str, str]) -> dict[str, Position]:
    """Our own side of collections, given as {name in the catalog: name in Estuary}."""
    rows = connection.execute(Q["positions"], {"names": list(names), "estuary": list(names.values())}).fetchall()
    return {name: Position(*rest) for name, *rest in rows}


def watermarks(
    connection: Connection, catalog: Catalog, profile: Profile, settings: EstuarySettings
) -> dict[str, datetime | None]:
    """Up to when each collection that Estuary feeds is complete, by its name in the catalog; None before the first."""
    return {name: ours.watermark for name, ours in positions(connection, fed_names(catalog, profile, settings)).items()}


def _movements(connection: Connection, collections: list[str]) -> dict[tuple[str, str], Movement]:
    rows = connection.execute(Q["movements"], {"collections": collections}).fetchall()
    return {(task, collection): Movement(*rest) for task, collection, *rest in rows}


def _note(connection: Connection, views: Sequence[CollectionView]) -> None:
    seen = [(view.estuary, delivery.task, delivery.movement) for view in views for delivery in view.deliveries]
    connection.execute(
        Q["note_movements"],
        {
            "tasks": [task for _, task, _ in seen],
            "collections": [collection for collection, _, _ in seen],
            "docs": [movement.docs for *_, movement in seen],
            "written": [movement.written for *_, movement in seen],
            "moved": [movement.moved_at for *_, movement in seen],
            "waiting": [movement.waiting_since for *_, movement in seen],
            "observed": [movement.observed_at for *_, movement in seen],
        },
    )
