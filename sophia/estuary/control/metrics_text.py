"""What Estuary's metrics say: totals by collection, by task, and by binding (a task with a collection of its own).

The totals are those of the calendar month, counted by Estuary in UTC: they begin again at 0 with each month, and what
is 0 is left out. A text without its last line `# EOF` was cut off and is refused whole, so that a missing sample always
means 0 and never a lost one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from sophia.errors import ConfigurationError, TemporaryError

Role = Literal["captured", "derived", "materialized"]
END = "# EOF"
# Of `<role>_<measure>`: documents and bytes that the task took, and when the newest of them was published.
_BINDING = {
    "captured_out_docs_total": "docs",
    "captured_out_bytes_total": "bytes",
    "captured_last_published_at_time_seconds": "published_at",
    "derived_in_docs_total": "docs",
    "derived_in_bytes_total": "bytes",
    "derived_last_source_published_at_time_seconds": "published_at",
    "materialized_in_docs_total": "docs",
    "materialized_in_bytes_total": "bytes",
    "materialized_last_source_published_at_time_seconds": "published_at",
}
_COLLECTION = {
    "written_to_me_docs_total": "written_docs",
    "written_to_me_bytes_total": "written_bytes",
    "read_from_me_docs_total": "read_docs",
    "read_from_me_bytes_total": "read_bytes",
}
_TASK = {
    "logged_warnings_total": "warnings",
    "logged_errors_total": "errors",
    "logged_failures_total": "failures",
    "txn_count_total": "transactions",
}


@dataclass(slots=True)
class Binding:
    """What a task did with a collection this month.

    Attributes:
        role: whether it captures into the collection, derives from it or materializes it.
        docs, bytes: taken: written by a capture, read by the others.
        published_at: when the newest of these documents was published, in seconds since 1970; 0 if Estuary says
            nothing of it. It is a front: while a task replays, it goes back.
    """

    task: str
    collection: str
    role: Role
    docs: float = 0.0
    bytes: float = 0.0
    published_at: float = 0.0


@dataclass(slots=True)
class CollectionTotals:
    """What was written to a collection and read from it this month, by all tasks together."""

    written_docs: float = 0.0
    written_bytes: float = 0.0
    read_docs: float = 0.0
    read_bytes: float = 0.0


@dataclass(slots=True)
class TaskTotals:
    """What a task logged this month, and the transactions that it committed."""

    warnings: float = 0.0
    errors: float = 0.0
    failures: float = 0.0
    transactions: float = 0.0


@dataclass(slots=True)
class Metrics:
    """One look at the metrics of a prefix."""

    bindings: dict[tuple[str, str], Binding] = field(default_factory=dict)
    collections: dict[str, CollectionTotals] = field(default_factory=dict)
    tasks: dict[str, TaskTotals] = field(default_factory=dict)

    def of(self, collection: str) -> list[Binding]:
        """The bindings of a collection, by task."""
        return [b for _, b in sorted(self.bindings.items()) if b.collection == collection]


def parse_metrics(text: str) -> Metrics:
    """Read the answer of `GET /api/v1/metrics/{prefix}/`; metrics that are not known here are passed over.

    Raises:
        TemporaryError: the text is cut off.
        ConfigurationError: it is no metrics text at all, or a number in it is none.
    """
    metrics = Metrics()
    for family in _families(text):
        for sample in family.samples:
            name, labels = sample.name, sample.labels
            if name not in _BINDING and name not in _COLLECTION and name not in _TASK:
                continue
            value = float(sample.value)
            if not math.isfinite(value) or value < 0:
                raise ConfigurationError(f"Estuary's metrics: {name} is {value}, which is no total")
            task, collection = labels.get("task", ""), labels.get("collection", "")
            if name in _TASK and task:
                _add(metrics.tasks.setdefault(task, TaskTotals()), _TASK[name], value)
            elif name in _COLLECTION and collection:
                _add(metrics.collections.setdefault(collection, CollectionTotals()), _COLLECTION[name], value)
            elif name in _BINDING and task and collection:
                role: Role = name.split("_", 1)[0]  # type: ignore[assignment]
                binding = metrics.bindings.setdefault((task, collection), Binding(task, collection, role))
                if _BINDING[name] == "published_at":
                    binding.published_at = max(binding.published_at, value)
                else:
                    # A derivation may read a collection by several transforms.
                    _add(binding, _BINDING[name], value)
    return metrics


def _families(text: str) -> Iterator[Metric]:
    try:
        families = list(text_string_to_metric_families(text))
    except (ValueError, IndexError, KeyError) as error:
        if not text.lstrip().startswith("#"):
            raise ConfigurationError(
                "Estuary's metrics: the answer is no metrics text; SOPHIA_ESTUARY__URL must be the control plane's"
            ) from error
        raise TemporaryError("Estuary's metrics: the answer cannot be read; it may have been cut off") from error
    if text.rstrip().rpartition("\n")[2] != END:
        if not families:
            raise ConfigurationError(
                "Estuary's metrics: the answer is empty; SOPHIA_ESTUARY__URL must be the control plane's"
            )
        raise TemporaryError("Estuary's metrics: the answer was cut off before its end")
    return iter(families)


def _add(totals: Binding | CollectionTotals | TaskTotals, name: str, value: float) -> None:
    setattr(totals, name, getattr(totals, name) + value)
