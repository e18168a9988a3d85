"""What the web services share."""

from __future__ import annotations

from sophia.services.console.metrics import Metrics


def test_methods_that_a_client_makes_up_share_one_label() -> None:
    """Each label is kept in memory for ever."""
    metrics = Metrics()
    for method in ("GET", "BREW", "X" * 1_000, *(f"M{number}" for number in range(50))):
        metrics.observe({"type": "http", "method": method, "path": "/nowhere"}, 404, 0.1)
    lines = [line for line in metrics.text().decode().splitlines() if "request_seconds_count" in line]
    assert [line.split('method="')[1].split('"')[0] for line in lines] == ["GET", "other"]
