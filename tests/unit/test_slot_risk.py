"""When a slot is near to being lost, and what is to be done."""

from __future__ import annotations

import pytest

from sophia.capture.source import Slot, slot_risk

MB = 1_000_000


@pytest.mark.parametrize(
    ("status", "retained", "safe", "said"),
    [
        ("reserved", 10 * MB, None, None),
        ("extended", 9_000 * MB, None, None),
        ("reserved", 400 * MB, 600 * MB, None),
        ("extended", 600 * MB, 400 * MB, "holds back 600 MB of log and is lost after 400 MB more"),
        ("unreserved", 1_100 * MB, -100 * MB, "is lost at the source's next checkpoint"),
        ("lost", 0, None, "will copy the tables anew"),
    ],
)
def test_slot_risk(status: str, retained: int, safe: int | None, said: str | None) -> None:
    risk = slot_risk("mine", Slot("db", None, 1, status, retained, safe))
    if said is None:
        assert risk is None
    else:
        assert risk is not None
        assert risk.startswith("slot 'mine' ")
        assert said in risk
        assert status == "lost" or "ALTER SYSTEM SET max_slot_wal_keep_size" in risk
