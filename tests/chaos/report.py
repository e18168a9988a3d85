"""What a chaos run did and found: kept as JSON after each round, so that a run resumes; shown as a Markdown table."""

from __future__ import annotations

import json
import platform
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.chaos.driver import Outcome
from tests.chaos.points import POINTS

DURABILITY = ("fsync", "full_page_writes", "synchronous_commit")


@dataclass
class Totals:
    """Sums over all rounds of a run, interrupted or not.

    Attributes:
        next: number of the next round.
        servers: servers that the rounds ran on, each with a first snapshot of its own.
        versions, settings: of PostgreSQL, pgvector and Python; and the server's durability, as it said.
    """

    seed: str
    next: int = 0
    servers: int = 0
    changes: int = 0
    embedded: int = 0
    rows: int = 0
    chunks: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)
    failed: list[int] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Add a round."""
        self.next = outcome.number + 1
        for name in ("changes", "embedded", "rows", "chunks", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(outcome, name))
        for name in ("faults", "kills", "hits", "ends", "losses"):
            getattr(self, name).update(getattr(outcome, name))
        if outcome.losses:
            self.failed.append(outcome.number)

    def describe(self, connection: psycopg.Connection[Any]) -> None:
        """Note what runs, and that it is durable."""
        for name in DURABILITY:
            row = connection.execute(f"SHOW {name}").fetchone()
            assert row is not None
            self.settings[name] = row[0]
        row = connection.execute(
            "SELECT current_setting('server_version'), extversion FROM pg_extension WHERE extname = 'vector'"
        ).fetchone()
        assert row is not None
        self.versions = {"postgresql": row[0], "pgvector": row[1], "python": platform.python_version()}

    @property
    def killed(self) -> int:
        """Processes that were ended by SIGKILL."""
        return sum(self.kills.values())

    def line(self) -> str:
        """How far it is, for people."""
        least = min(POINTS, key=lambda name: self.hits[name])
        return (
            f"{self.next} rounds, {self.killed} kills, {self.changes:,} changes, losses {sum(self.losses.values())}, "
            f"least hit {least} ({self.hits[least]})"
        )

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".tmp")
        part.write_text(json.dumps(self.__dict__, indent=2, sort_keys=True) + "\n")
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> Totals:
        """Read what `save` wrote."""
        values: dict[str, Any] = json.loads(path.read_text())
        counters = ("faults", "kills", "hits", "ends", "losses")
        return cls(**values | {name: Counter(values[name]) for name in counters})

    def markdown(self, command: str) -> str:
        """The table of faults, failpoints and losses."""
        durable = ", ".join(f"{name} = {value}" for name, value in self.settings.items())
        versions = ", ".join(f"{name} {value}" for name, value in self.versions.items())
        lost = sum(self.losses.values())
        lines = [
            "# Chaos: random SQL, random faults, then quiet",
            "",
            f"`{command}`, seed `{self.seed}`: {self.next} rounds on {self.servers} servers, "
            f"{self.killed:,} processes killed by SIGKILL, {self.changes:,} row changes, "
            f"{self.embedded:,} texts embedded, {self.seconds / 60:.0f} minutes. After each round the oracle compared "
            f"every live version with the source: {self.rows:,} rows and {self.chunks:,} chunks in all.",
            "",
            f"Server: {durable}. Versions: {versions}.",
            "",
            "| difference from `embed(current rows)` | found |",
            "|---|---|",
            *(f"| {kind} | {self.losses[kind]} |" for kind in sorted({*KINDS, *self.losses})),
            "",
            f"Rounds with a difference: {', '.join(map(str, self.failed)) or 'none'}. Losses in all: {lost}.",
            "",
            "| SIGKILL of | times |",
            "|---|---|",
            *(f"| {name} | {count} |" for name, count in sorted(self.kills.items())),
            "",
            "| fault | times |",
            "|---|---|",
            *(f"| {name.replace('_', ' ')} | {count} |" for name, count in sorted(self.faults.items())),
            "",
            "| killed at failpoint | times |",
            "|---|---|",
            *(f"| `{name}` | {self.hits[name]} |" for name in POINTS),
        ]
        return "\n".join(lines) + "\n"


# What the oracle and the driver may find, so that a table shows the zeros too.
KINDS = (
    *("missing", "extra", "stale", "doubled", "vector", "metadata", "versions"),
    *("unlevel", "unproven", "restless", "mended"),
)
