"""docs/guarantees.md names tests; each of them exists."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "guarantees.md"


def test_every_named_test_exists() -> None:
    names = set(re.findall(r"`(test_\w+\*?)`", PAGE.read_text()))
    files = set(re.findall(r"`(test_\w+\.py)`", PAGE.read_text()))
    known = {
        name for path in TESTS.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(names) >= 5
    assert {name for name in names if not fnmatch.filter(known, name)} == set()
    assert {name for name in files if not list(TESTS.rglob(name))} == set()
