"""The table of a comparison, with ratios to Sophia, and the figures to keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness import quantiles, show

REFERENCE = "sophia"
STATES = {
    "state after load and changes": ("initial", "change set", "hot row", "touched"),
    "state after kill -9": ("kill -9",),
    "state after cut connections": ("cut",),
}


def report(
    figures: Mapping[str, Mapping[str, Any]], rows: int, share: int, durability: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Print the table; the same as plain data."""
    table = {name: _cells(measured, share) for name, measured in figures.items()}
    print(f"{rows} rows; change sets of {share} updates, {share} deletes and {share} inserts; each arm on one core")
    for name, settings in durability.items():
        print(f"  {name}: {', '.join(f'{k}={v}' for k, v in settings.items())}")
    reference = table.get(REFERENCE, {})
    names = list(dict.fromkeys(what for cells in table.values() for what in cells))
    show(
        "Sophia and its peers (in brackets: times Sophia's)",
        ["measure", *table],
        [[what, *(_shown(cells.get(what), reference.get(what)) for cells in table.values())] for what in names],
    )
    for name, measured in figures.items():
        if "left out" in measured:
            print(f"{name} is left out: {measured['left out']}")
    return {"rows": rows, "share": share, "durability": dict(durability), "table": table, "measured": dict(figures)}


def _cells(measured: Mapping[str, Any], share: int) -> dict[str, float | int | str]:
    cells: dict[str, float | int | str] = {}
    if "left out" in measured:
        return {"initial load, s": "left out"}

    def each(name: str, field: str) -> list[Any]:
        return [run[field] for run in measured.get(name, []) if field in run]

    def median(name: str, title: str) -> None:
        if seconds := each(name, "seconds"):
            cells[title] = quantiles(seconds)["p50"]

    median("initial", "initial load, s")
    for start in each("initial", "start"):
        cells["  before the first embedding, s"] = start
    for requests in each("initial", "requests"):
        cells["  embedder calls"] = requests
    for paid in each("initial", "texts"):
        cells["  texts embedded"] = paid
    median("change set", "change set until right, s")
    if paid := each("change set", "texts"):
        cells[f"  texts embedded ({2 * share} is right)"] = max(paid)
    for what in ("insert", "update", "delete"):
        if times := [value for run in each("latency", what) for value in run]:
            found = quantiles(times)
            cells[f"{what} p50, ms"] = found["p50"]
            cells[f"{what} p95, ms"] = found["p95"]
    for title, name in (
        ("50 updates of a row: texts embedded", "hot row"),
        ("15 rows touched: texts embedded", "touched"),
    ):
        for paid in each(name, "texts"):
            cells[title] = paid
    median("kill -9", "kill -9, restart until exact, s")
    if paid := each("kill -9", "texts"):
        cells[f"  texts, kill -9 ({2 * share} is right)"] = max(paid)
    median("cut", "connections cut until exact, s")
    for title, names in STATES.items():
        if states := [state for name in names for state in each(name, "state")]:
            faults = [state for state in states if state != "exact"]
            cells[title] = "; ".join(faults) or f"exact {len(states)}/{len(states)}"
    return cells


def _shown(value: float | int | str | None, reference: float | int | str | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    if isinstance(value, float) and isinstance(reference, float) and reference and value is not reference:
        text += f" ({value / reference:.1f}×)"
    return text
