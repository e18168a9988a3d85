"""`make demo` as a newcomer runs it: everything real, measured, and free to be run again."""

from __future__ import annotations

import json
import re

import pytest

from tests.e2e.conftest import Home

pytestmark = pytest.mark.timeout(900)

MEASURED = re.compile(r"(insert|update|delete)\b.*?│\s+([\d.]+) ms")


def test_the_demo_shows_measured_changes(home: Home) -> None:
    assert home.demo.returncode == 0, home.demo.stdout + home.demo.stderr
    times = {what: float(number) for what, number in MEASURED.findall(home.demo.stdout)}
    assert set(times) == {"insert", "update", "delete"}
    # How long it takes is the machine's business.
    assert min(times.values()) > 0
    assert "documents captured" in home.demo.stdout
    assert "Nothing was re-embedded" not in home.demo.stdout


def test_the_index_that_it_leaves_equals_its_source(home: Home) -> None:
    status = json.loads(home.sophia("status", "--json").stdout)
    found = {index["index"]: index for index in status["indexes"]}
    assert set(found) == {"documents", "memory", "business_intelligence"}
    assert found["documents"]["indexed"] == found["documents"]["documents"] == 150
    assert all(index["level"] for index in found.values())


def test_a_second_demo_embeds_nothing_again(home: Home) -> None:
    done = home.sophia("demo", "--rows", "150", "--changes", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing was re-embedded" in done.stdout
    assert re.search(r"rows added to the sample tables\s*│\s*0 ", done.stdout)
