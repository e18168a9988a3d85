"""Automation sensors, several and scoped, so that one family of assets cannot hold up another."""

from __future__ import annotations

import dagster as dg

from sophia_assets.keys import PLATFORM_KINDS


def build_automation_sensors() -> list[dg.AutomationConditionSensorDefinition]:
    """One for what is built and secret, one for what runs in the cluster, one for what faces outward."""
    scopes = {
        "images_automation_sensor": ("images", "secrets", "environments"),
        "cluster_automation_sensor": ("nodes", "cluster", "services"),
        "edge_automation_sensor": ("estuary", "workflows", "frontends"),
    }
    assert {kind for kinds in scopes.values() for kind in kinds} == set(PLATFORM_KINDS)  # noqa: S101
    return [
        dg.AutomationConditionSensorDefinition(
            name,
            target=dg.AssetSelection.groups(*kinds),
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=60,
            run_tags={"sophia/reason": "planned again: something upstream or in the catalog changed"},
            description=f"Plans {' and '.join(kinds)} again when something upstream or in the catalog changed.",
        )
        for name, kinds in scopes.items()
    ]
