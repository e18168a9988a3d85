"""What Estuary's alert types mean for us, and how bad each is.

`ERROR`: documents do not arrive, or soon will not. `WARN`: somebody should look. A type that is not known here is an
error, so that a new one is not overlooked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["ERROR", "WARN"]


@dataclass(frozen=True, slots=True)
class AlertKind:
    """A type of alert: what it means, and what a person does."""

    severity: Severity
    meaning: str
    fix: str


_LOGS = "read the task's logs in Estuary"
_BILLING = "see to Estuary's billing page"
ALERT_KINDS: dict[str, AlertKind] = {
    "auto_discover_failed": AlertKind(
        "ERROR", "the source's schema could not be read again", "check the capture's access to the source"
    ),
    "background_publication_failed": AlertKind(
        "ERROR", "Estuary could not publish a change of its own", "run `sophia estuary plan`, mend what it names"
    ),
    "data_movement_stalled": AlertKind("ERROR", "the task has moved no data for too long", _LOGS),
    "shard_failed": AlertKind("ERROR", "the task fails again and again", _LOGS),
    "task_auto_disabled_failing": AlertKind(
        "ERROR", "Estuary has switched the task off after it failed for long", f"{_LOGS}, then enable it"
    ),
    "task_auto_disabled_idle": AlertKind(
        "ERROR", "Estuary has switched the task off after it was idle for long", "enable it if it is still wanted"
    ),
    "task_chronically_failing": AlertKind("ERROR", "the task has failed for long and will be switched off", _LOGS),
    "task_idle": AlertKind("WARN", "the task moves nothing and will be switched off", "is it still wanted?"),
    "free_trial": AlertKind("WARN", "the free trial runs", _BILLING),
    "free_trial_ending": AlertKind("WARN", "the free trial is about to end", _BILLING),
    "free_trial_stalled": AlertKind("WARN", "the free trial is over and nothing is paid", _BILLING),
    "missing_payment_method": AlertKind("WARN", "no payment method is on file", _BILLING),
}
UNKNOWN = AlertKind("ERROR", "an alert of a type that Sophia does not know", _LOGS)


def alert_kind(kind: str) -> AlertKind:
    """What a type means; `UNKNOWN` for one that is new."""
    return ALERT_KINDS.get(kind, UNKNOWN)
