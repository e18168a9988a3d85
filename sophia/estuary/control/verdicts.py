"""What a look at Estuary means: is everything that people rely on true? Pure.

A verdict is about one asset and has one name, so that it is a check in the graph; it passes again as soon as a look no
longer shows the fault. Estuary's own words are in the sentence, its type of alert before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sophia.catalog.models import Catalog
from sophia.estuary.catalog.plan import CatalogPlan
from sophia.estuary.control.alerts import Severity, alert_kind
from sophia.estuary.control.observation import CollectionView, Look
from sophia.estuary.control.shapes import Alert

# Totals reach us by polls a minute apart; less than three of them may be no more than Estuary's own rounding.
LEAST_WAIT_SECONDS = 180.0
Kind = Literal["collections", "sources"]
# Checks of each collection and of the source that feeds it.
COLLECTION_CHECKS: Mapping[str, str] = {
    "estuary_alerts": "No alert of Estuary fires for the collection or its tasks.",
    "estuary_moves": "Its tasks run, and take what is written in time.",
    "estuary_schema": "Its documents have the columns that the catalog and the indexes expect.",
}
SOURCE_CHECKS: Mapping[str, str] = {
    "estuary_answers": "Estuary's control plane answers Sophia.",
    "estuary_alerts": "No alert of Estuary fires below the observed prefix.",
    "estuary_catalog": "What is published at Estuary is what the catalog renders.",
}
# More than these are only counted.
MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a check of an asset holds. `fired` names what makes it fail, apart from figures that move."""

    kind: Kind
    name: str
    check: str
    passed: bool
    severity: Severity
    text: str
    figures: Mapping[str, float] = field(default_factory=dict)
    fired: tuple[str, ...] = ()


def sources_of(look: Look) -> list[str]:
    """The catalog's sources that the observed collections name."""
    return list(dict.fromkeys(view.source for view in look.collections))


def alert_line(alert: Alert) -> str:
    """An alert on one line: type, name, Estuary's text, what to do."""
    kind = alert_kind(alert.type)
    said = alert.text or kind.meaning
    return f"{alert.type} of {alert.name} since {alert.fired_at:%Y-%m-%d %H:%M} UTC: {said} ({kind.fix})"


def verdicts(look: Look, catalog: Catalog, mismatches: Mapping[str, Sequence[str]]) -> list[Verdict]:
    """All verdicts of a look, by collection and then by source.

    Args:
        mismatches: where a collection's documents and the catalog do not fit, by the collection's name.
    """
    found: list[Verdict] = []
    for view in look.collections:
        late = float(catalog.collection(view.name).max_lag_seconds)
        found += [
            _alerts("collections", view.name, view.alerts),
            _moves(view, late, all_specs=look.whole),
            _schema(view.name, mismatches.get(view.name, ())),
        ]
    for source in sources_of(look):
        found.append(Verdict("sources", source, "estuary_answers", True, "WARN", "it answers"))
        found.append(_alerts("sources", source, look.alerts))
    return found


def away(sources: Sequence[str], reason: str) -> list[Verdict]:
    """The verdicts where Estuary could not be asked; what was true of the rest is not known."""
    return [Verdict("sources", name, "estuary_answers", False, "WARN", reason, fired=("away",)) for name in sources]


def catalog_verdict(source: str, plan: CatalogPlan) -> Verdict:
    """Whether everything that the catalog renders is published, by names only: a definition may hold addresses."""
    changes = plan.of("add", "change")
    named = [f"{change.action} {change.kind} {change.name}" for change in changes]
    dangers = [f"{change.name}: {danger}" for change in changes for danger in change.dangers]
    left_out = [f"and {len(named) - MOST_NAMED} more"] if len(named) > MOST_NAMED else []
    sentences = [*named[:MOST_NAMED], *left_out, *dangers[:MOST_NAMED]]
    return Verdict(
        "sources",
        source,
        "estuary_catalog",
        passed=plan.empty,
        severity="WARN",
        text="; ".join(sentences) + "; run `sophia estuary plan`" if sentences else "published as rendered",
        figures={"to_add": len(plan.of("add")), "to_change": len(plan.of("change"))},
    )


def stalled(view: CollectionView, max_lag_seconds: float) -> list[str]:
    """The tasks that do not take what is written to the collection, a sentence each."""
    least = max(max_lag_seconds, LEAST_WAIT_SECONDS)
    return [
        f"{delivery.task} takes nothing although documents are written, for {delivery.movement.waiting_seconds:.0f} s"
        for delivery in view.deliveries
        if delivery.movement.waiting_seconds >= least
    ]


def _alerts(kind: Kind, name: str, alerts: Sequence[Alert]) -> Verdict:
    ordered = sorted(alerts, key=lambda alert: (alert_kind(alert.type).severity, alert.fired_at, alert.name))
    return Verdict(
        kind,
        name,
        "estuary_alerts",
        passed=not alerts,
        severity=_worst(alerts),
        text="\n".join(alert_line(alert) for alert in ordered) or "no alert fires",
        figures={"alerts": len(alerts)},
        fired=tuple(sorted(f"{alert.type} {alert.name} {alert.fired_at.isoformat()}" for alert in alerts)),
    )


def _worst(alerts: Sequence[Alert]) -> Severity:
    return "WARN" if alerts and all(alert_kind(alert.type).severity == "WARN" for alert in alerts) else "ERROR"


def _moves(view: CollectionView, max_lag_seconds: float, *, all_specs: bool) -> Verdict:
    standing = stalled(view, max_lag_seconds)
    failing = [f"{task.name} fails: {task.summary}" for task in view.tasks if task.health == "ERROR"]
    off = [f"{task.name} is disabled" for task in view.tasks if task.disabled or task.health == "TASK_DISABLED"]
    missing = []
    if view.published is None and all_specs:
        missing = [f"{view.estuary} is not published; run `sophia estuary plan`"]
    lag = view.lag or 0.0
    late = [f"{lag:.0f} s behind its source, more than {max_lag_seconds:g} s"] if lag > max_lag_seconds else []
    bad, doubtful = standing + failing + missing, off + late
    return Verdict(
        "collections",
        view.name,
        "estuary_moves",
        passed=not bad and not doubtful,
        severity="ERROR" if bad or not doubtful else "WARN",
        text="; ".join(bad + doubtful) or "its tasks run, and nothing waits",
        figures={"lag_seconds": round(lag, 1), "waiting_seconds": round(view.waiting_seconds, 1)},
        fired=(
            *(f"stalled {d.task}" for d in view.deliveries if standing and d.movement.waiting_since),
            *(f"error {task.name}" for task in view.tasks if task.health == "ERROR"),
            *missing,
            *off,
            *(["late"] if late else []),
        ),
    )


def _schema(name: str, mismatches: Sequence[str]) -> Verdict:
    return Verdict(
        "collections",
        name,
        "estuary_schema",
        passed=not mismatches,
        severity="WARN",
        text="; ".join(mismatches) or "documents and catalog fit",
        figures={"mismatches": len(mismatches)},
        fired=tuple(mismatches),
    )
