"""What holds for every kind and the whole catalog."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

import sophia.platform
from sophia.catalog.models import Catalog
from sophia.platform import PlatformSystems, Reconciler, Rendered, build_reconcilers
from sophia.platform.exposure import exposures
from sophia.platform.registry import build_reconcilers as build

KINDS = ["secrets", "environments", "nodes", "cluster", "images", "services", "estuary", "workflows", "frontends"]


def test_kinds_in_order_of_dependence(reconcilers: dict[str, Reconciler[Any]]) -> None:
    assert list(reconcilers) == KINDS
    assert all(reconciler.kind == kind for kind, reconciler in reconcilers.items())


@pytest.mark.parametrize("kind", KINDS)
def test_rendering_is_deterministic(catalog: Catalog, kind: str) -> None:
    one, other = build(catalog)[kind], build(catalog)[kind]
    for first, second in zip(one.entries(), other.entries(), strict=True):
        assert dict(one.render(first).files) == dict(other.render(second).files)
        assert one.render(first).digest == other.render(second).digest


def test_paths_are_unique_over_the_platform(reconcilers: dict[str, Reconciler[Any]]) -> None:
    paths = [
        path
        for reconciler in reconcilers.values()
        for entry in reconciler.entries()
        for path in reconciler.render(entry).files
    ]
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize("kind", KINDS)
def test_real_catalog_has_no_errors(reconcilers: dict[str, Reconciler[Any]], kind: str) -> None:
    reconciler = reconcilers[kind]
    findings = [str(f) for entry in reconciler.entries() for f in reconciler.verify(entry) if f.severity == "error"]
    assert findings == []


@pytest.mark.parametrize("kind", KINDS)
def test_plan_mode_claims_nothing(reconcilers: dict[str, Reconciler[Any]], kind: str) -> None:
    reconciler = reconcilers[kind]
    for entry in reconciler.entries():
        plan = reconciler.plan(entry)
        assert plan.observed.state == "unknown"
        assert plan.observed.reason
        assert not plan.empty
        assert not hasattr(reconciler, "apply")


def test_planning_everything_takes_about_a_second(catalog: Catalog) -> None:
    started = time.process_time()
    for reconciler in build_reconcilers(catalog).values():
        for entry in reconciler.entries():
            reconciler.plan(entry)
    # Measured at 0.3 s; the rest is for a busy machine.
    assert time.process_time() - started < 3


def test_no_heavy_import() -> None:
    code = (
        "import sys, sophia.platform as p; from sophia.catalog import load; "
        "[r.plan(e) for r in p.build_reconcilers(load()).values() for e in r.entries()]; "
        "print([m for m in ('dagster', 'docker', 'kubernetes', 'kubernetes_validate', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_sorted_and_there() -> None:
    assert sophia.platform.__all__ == sorted(sophia.platform.__all__)
    assert all(hasattr(sophia.platform, name) for name in sophia.platform.__all__)


def test_systems_show_no_secret() -> None:
    systems = PlatformSystems(n8n_api_key="k-of-n8n", vercel_token="t-of-vercel", environ={"A": "value-of-a"})
    assert not any(value in repr(systems) for value in ("k-of-n8n", "t-of-vercel", "value-of-a"))


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("Endpoint = " + ".".join("8888") + ":51820", "public-address"),
        ("url: postgresql://sophia:hunter22@db/sophia", "credential"),
        ("-----BEGIN OPENSSH " + "PRIVATE KEY-----", "credential"),
        ("token: gh" + "p_" + "a" * 36, "credential"),
        ("token: xoxb-" + "1" * 12, "credential"),
    ],
)
def test_exposures_are_found(line: str, rule: str) -> None:
    findings = list(exposures(Rendered({"f": f"first\n{line}\n"})))
    assert [finding.rule for finding in findings] == [rule]
    assert findings[0].where == "f:2"
    assert "hunter22" not in str(findings[0])


@pytest.mark.parametrize(
    "line",
    [
        "cidr: 10.0.0.0/8",
        "host: 127.0.0.1",
        "all: 0.0.0.0/0",
        "tag: 1.31.0",
        "doc: 192.0.2.1",
        "$(SOPHIA_DATABASE_URL)",
    ],
)
def test_harmless_lines_are_no_exposures(line: str) -> None:
    assert list(exposures(Rendered({"f": line}))) == []
