"""What the stand-in holds: indexes, their namespaces, and each namespace's log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Records = dict[str, dict[str, Any]]


class Namespace:
    """Records, and the log of their writes. Reads show the log up to `indexed`.

    Each namespace numbers its own writes; what deletes nothing is a write, too.
    """

    def __init__(self) -> None:
        self.written = 0
        self.indexed = 0
        self.shown: Records = {}
        self._waiting: list[Callable[[Records], None]] = []

    def write(self, change: Callable[[Records], None]) -> int:
        """Take a write into the log. Returns its position."""
        self._waiting.append(change)
        self.written += 1
        return self.written

    def index(self) -> None:
        """Show all that was written."""
        for change in self._waiting:
            change(self.shown)
        self._waiting.clear()
        self.indexed = self.written


@dataclass
class Index:
    """A dense index."""

    name: str
    dimension: int
    metric: str
    deployment: dict[str, Any]
    ready: bool = True
    namespaces: dict[str, Namespace] = field(default_factory=dict)

    def described(self, host: str) -> dict[str, Any]:
        """As the control plane of 2026-07 shows it."""
        return {
            "name": self.name,
            "host": host,
            "status": {"ready": self.ready, "state": "Ready" if self.ready else "Initializing"},
            "schema": {
                "fields": {"_values": {"type": "dense_vector", "dimension": self.dimension, "metric": self.metric}}
            },
            "deployment": self.deployment,
            "deletion_protection": "disabled",
        }


def cosines(records: Records, vector: list[float]) -> list[tuple[str, float]]:
    """Ids by falling cosine to the vector."""
    if not records:
        return []
    names = sorted(records)
    matrix = np.asarray([records[name]["values"] for name in names], dtype=np.float64)
    wanted = np.asarray(vector, dtype=np.float64)
    scores = matrix @ wanted / (np.linalg.norm(matrix, axis=1) * max(float(np.linalg.norm(wanted)), 1e-12))
    return [(names[n], float(scores[n])) for n in np.argsort(-scores, kind="stable")]
