"""What is planned again by itself, and how often."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from sophia.catalog import Catalog
from sophia_assets.definitions import build_definitions
from sophia_assets.keys import PLATFORM_KINDS, asset_key
from tests.catalogs import changed, replaced

IMAGE, BASE = asset_key("images", "sophia-ai-main"), asset_key("images", "sophia-ai-base")


class Automation:
    """The automation sensors' evaluation, tick by tick; what is requested is run at once."""

    def __init__(self, catalog: Catalog, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursor: Any = None
        self.load(catalog)

    def load(self, catalog: Catalog) -> None:
        self.definitions = build_definitions(catalog, "local")

    def tick(self, *, run: bool = True) -> set[dg.AssetKey]:
        """The assets that are requested now."""
        result = dg.evaluate_automation_conditions(
            self.definitions,
            instance=self.instance,
            cursor=self.cursor,
            asset_selection=dg.AssetSelection.groups(*PLATFORM_KINDS),
        )
        self.cursor = result.cursor
        wanted = {
            entry.key for entry in result.results if entry.true_subset.size and isinstance(entry.key, dg.AssetKey)
        }
        if run and wanted:
            self.plan(*wanted)
        return wanted

    def plan(self, *keys: dg.AssetKey) -> None:
        """A run of these assets, or of all; as events only, since what they say is tested elsewhere."""
        resolved = self.definitions.resolve_asset_graph()
        planned = set(keys) or {k for k in resolved.materializable_asset_keys if k.path[0] in PLATFORM_KINDS}
        for key in resolved.toposorted_asset_keys:
            if key in planned:
                self.report(key, code_version=resolved.get(key).code_version)

    def report(self, key: dg.AssetKey, code_version: str | None) -> None:
        tags = {"dagster/code_version": code_version} if code_version else {}
        self.instance.report_runless_asset_event(dg.AssetMaterialization(key, tags=tags))


@pytest.fixture
def automation(catalog: Catalog) -> Any:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Automation(catalog, instance)


def test_nothing_is_planned_again_when_nothing_changed(automation: Automation) -> None:
    assert automation.tick() == set()
    automation.plan()
    # One run planned everything, in the order of the dependencies: nothing is left to plan again.
    assert automation.tick() == set()
    assert automation.tick() == set()


def test_a_changed_entry_is_planned_again_once_and_then_what_depends_on_it(
    automation: Automation, catalog: Catalog
) -> None:
    automation.tick()
    automation.plan()
    automation.tick()
    image = catalog.image("sophia-ai-base")
    automation.load(changed(catalog, images=replaced(catalog.images, image, description="Another description.")))
    ticks = [automation.tick()]
    while ticks[-1] and len(ticks) < 8:
        ticks.append(automation.tick())
    assert BASE in ticks[0]
    requested = set().union(*ticks)
    assert {IMAGE, asset_key("services", "core_api")} <= requested
    # Only what is downstream, and it comes to rest.
    assert asset_key("nodes", "sophia-production") not in requested
    assert asset_key("images", "python") not in requested
    assert ticks[-1] == set()


def test_a_change_while_a_plan_runs_is_not_forgotten(automation: Automation, catalog: Catalog) -> None:
    automation.tick()
    automation.plan()
    automation.tick()
    run = _start(automation)
    automation.report(BASE, None)
    during = automation.tick(run=False)
    assert IMAGE not in during
    automation.instance.report_run_canceled(run)
    assert IMAGE in automation.tick()


def _start(automation: Automation) -> dg.DagsterRun:
    """A run that plans IMAGE and is in progress."""
    job = automation.definitions.get_job_def("plan_platform")
    run = automation.instance.create_run_for_job(job, asset_selection=frozenset({IMAGE}))
    automation.instance.report_dagster_event(
        dg.DagsterEvent(event_type_value=dg.DagsterEventType.PIPELINE_STARTING.value, job_name=job.name), run.run_id
    )
    return run
