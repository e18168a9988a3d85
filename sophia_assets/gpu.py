"""Pool, tags and pod settings of GPU steps, from one place. They go onto the asset: job tags never reach step pods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sophia.catalog import Catalog

POOL = "gpu"
# The service whose image runs and steps are started from.
CODE_LOCATION = "dagster_code"


def gpu_step(catalog: Catalog) -> dict[str, Any]:
    """`pool` and `op_tags` of a step that embeds in bulk: the routing table's answer for batch work with a GPU.

    Only hosts of an architecture that the steps' image is built for are named; one GPU host of the fleet is arm64.
    """
    from sophia.platform import RoutingTable, Workload, architectures_of

    workload = Workload(kind="batch", priority="low", gpu=1)
    images = [catalog.image(service.image) for service in catalog.services if service.name == CODE_LOCATION]
    if images:
        workload = replace(workload, architectures=architectures_of(images[0]))
    settings = RoutingTable(catalog).gpu_pod_settings(workload)
    return {"pool": POOL, "op_tags": {"dagster-k8s/config": settings}}
