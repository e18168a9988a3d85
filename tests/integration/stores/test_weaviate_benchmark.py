"""The benchmark of Weaviate runs, and says what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.stores.weaviate_stand import URL

PROJECT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "benchmarks.weaviate", "--quick"]


@pytest.mark.weaviate
@pytest.mark.skipif(URL is None, reason="set SOPHIA_TEST_WEAVIATE_URL")
def test_quick_mode() -> None:
    done = subprocess.run(COMMAND, cwd=PROJECT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert "of the client's own rate" in done.stdout
    assert "a quick run: nothing written" in done.stdout


def test_without_a_server_it_says_how_to_start_one() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SOPHIA_TEST_")}
    done = subprocess.run(COMMAND, cwd=PROJECT, capture_output=True, text=True, timeout=120, env=environ)
    assert done.returncode == 1
    assert "deploy/compose/weaviate.yaml" in done.stderr
