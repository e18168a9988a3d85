"""Estuary's control plane, on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.estuary_control.plane import Plane, plane


@pytest.fixture
def estuary() -> Iterator[Plane]:
    with plane() as running:
        yield running
