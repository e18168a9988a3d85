"""Pool, tags and pod settings of GPU steps, from one place. They go onto the asset: job tags never reach step pods."""

from __future__ import annotations

from typing import Any

from sophia.catalog import Catalog

POOL = "gpu"


def gpu_step(catalog: Catalog) -> dict[str, Any]:
    """`pool` and `op_tags` of a step that embeds in bulk: the routing table's answer for batch work with a GPU."""
    from sophia.platform import RoutingTable, Workload

    settings = RoutingTable(catalog).gpu_pod_settings(Workload(kind="batch", priority="low", gpu=1))
    return {"pool": POOL, "op_tags": {"dagster-k8s/config": settings}}
