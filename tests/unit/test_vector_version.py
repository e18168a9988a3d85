"""Which pgvector will do."""

from __future__ import annotations

import pytest

from sophia.database.connect import vector_fault


@pytest.mark.parametrize(
    ("available", "installed", "fix"),
    [
        (None, None, "has no pgvector; install"),
        ("0.7.4", None, "has pgvector 0.7.4; install 0.8 or newer"),
        ("0.8.1", "0.7.4", "ALTER EXTENSION vector UPDATE"),
        ("0.8.0", None, None),
        ("0.8.1", "0.8.0", None),
        ("0.10.0", "0.10.0", None),
    ],
)
def test_a_version_without_iterative_scans_is_named_with_its_fix(
    available: str | None, installed: str | None, fix: str | None
) -> None:
    fault = vector_fault(available, installed)
    assert (fault is None) if fix is None else (fix in (fault or ""))
