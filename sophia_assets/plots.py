"""Small pictures for asset metadata: a PNG in a data URI, which the UI's markdown shows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from datetime import datetime

import dagster as dg


def lag_plot(points: Sequence[tuple[datetime, float]], title: str) -> dg.MetadataValue | None:
    """Lag in milliseconds over time, 40 kB at most; None without points."""
    if not points:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 1.8), dpi=80, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([at for at, _ in points], [lag for _, lag in points], ".", markersize=3, color="#4f6df5")
    axes.axhline(100, color="#d33", linewidth=0.8, linestyle="--")
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    data = base64.b64encode(buffer.getvalue()).decode()
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{data})")
