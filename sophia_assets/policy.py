"""Policy, applied once over all specs: owners come from the catalog, the rest from here."""

from __future__ import annotations

import datetime

import dagster as dg

from sophia_assets.keys import PLATFORM_KINDS

# A plan that nobody made for a day is no plan: the catalog or the world may have moved.
PLAN_FRESHNESS = dg.FreshnessPolicy.time_window(
    fail_window=datetime.timedelta(hours=48), warn_window=datetime.timedelta(hours=26)
)
# The nightly repair compares every shard; two nights without it are too many.
INDEX_FRESHNESS = dg.FreshnessPolicy.time_window(
    fail_window=datetime.timedelta(hours=50), warn_window=datetime.timedelta(hours=26)
)
RETRY = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL)

# Plan again when something upstream moved or the catalog entry itself changed; never twice at a time. What moved stays
# remembered until it was planned: a change during a run is not forgotten, one that the same run planned not repeated.
PLAN_AGAIN = (
    (dg.AutomationCondition.any_deps_updated() | dg.AutomationCondition.code_version_changed()).since_last_handled()
    & ~dg.AutomationCondition.in_progress()
).with_label("plan_again")


def apply(spec: dg.AssetSpec) -> dg.AssetSpec:
    """The policy of a spec's group."""
    if spec.group_name in PLATFORM_KINDS:
        return spec.replace_attributes(freshness_policy=PLAN_FRESHNESS, automation_condition=PLAN_AGAIN)
    if spec.group_name == "indexes":
        return spec.replace_attributes(freshness_policy=INDEX_FRESHNESS)
    return spec
