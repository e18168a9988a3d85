"""What a step's pod gets. Dagster checks none of this when definitions load: a bad key shows at launch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster_k8s.job import (
    DagsterK8sJobConfig,
    UserDefinedDagsterK8sConfig,
    construct_dagster_k8s_job,
    get_user_defined_k8s_config,
)

from sophia.catalog import Catalog
from sophia_assets.gpu import POOL, gpu_step
from tests.catalogs import changed, replaced

TAG = "dagster-k8s/config"


def _tagged_ops(definitions: dg.Definitions) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """(job.op, the tag's value, pool) of every op that carries pod settings."""
    for job in definitions.get_repository_def().get_all_jobs():
        for node in job.nodes:
            if TAG in node.definition.tags:
                yield f"{job.name}.{node.name}", json.loads(node.definition.tags[TAG]), node.definition.pool


def _pod_settings(value: dict[str, Any]) -> UserDefinedDagsterK8sConfig:
    """What the executor makes of the tag; raises for unknown keys, at any depth that it builds."""
    config = get_user_defined_k8s_config({TAG: json.dumps(value)})
    _job(config)
    return config


def _job(config: UserDefinedDagsterK8sConfig) -> dict[str, Any]:
    job_config = DagsterK8sJobConfig(
        job_image="image", dagster_home="/opt/dagster", instance_config_map="config", postgres_password_secret=None
    )
    job: dict[str, Any] = construct_dagster_k8s_job(
        job_config, ["dagster"], "job", user_defined_k8s_config=config
    ).to_dict()
    return job


def test_every_index_has_pool_and_pod_settings(catalog: Catalog, cluster_definitions: dg.Definitions) -> None:
    graph = cluster_definitions.resolve_asset_graph()
    ops = {name.partition(".")[2] for name, _, pool in _tagged_ops(cluster_definitions) if pool == POOL}
    for index in catalog.indexes:
        assert graph.get(dg.AssetKey(["indexes", index.name])).pools == {POOL}
        assert f"indexes__{index.name}" in ops
    assert "rebuild" in ops


def test_only_bulk_work_waits_for_the_gpu(graph: AssetGraph) -> None:
    assert {key.path[0] for key in graph.get_all_asset_keys() if graph.get(key).pools} == {"indexes"}


@pytest.mark.parametrize("profile", ["definitions", "cluster_definitions"])
def test_pod_settings_of_every_op_are_understood(profile: str, request: pytest.FixtureRequest) -> None:
    found = list(_tagged_ops(request.getfixturevalue(profile)))
    assert found
    for name, value, _ in found:
        job = _job(_pod_settings(value))
        pod = job["spec"]["template"]["spec"]
        container = pod["containers"][0]
        assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}, name
        assert pod["runtime_class_name"] == "nvidia"
        assert {item["key"] for item in pod["tolerations"]} >= {"nvidia.com/gpu"}
        required = pod["affinity"]["node_affinity"]["required_during_scheduling_ignored_during_execution"]
        assert required["node_selector_terms"][0]["match_expressions"][0]["values"]
        assert job["spec"]["ttl_seconds_after_finished"] == 3600


def test_a_step_goes_only_where_its_image_runs(catalog: Catalog) -> None:
    """The large GPU host is arm64: work that only it can take stays away from it unless the image is built for it."""
    batch = catalog.route("batch")
    led_to_arm = changed(catalog, routes=replaced(catalog.routes, batch, nodes=("sophia-ai-core",)))
    assert _hosts(led_to_arm) == ["sophia-ai-core", "sophia-production"]
    image = led_to_arm.image("sophia-dagster")
    amd_only = changed(led_to_arm, images=replaced(led_to_arm.images, image, platforms=("linux/amd64",)))
    assert _hosts(amd_only) == ["sophia-production"]


def _hosts(catalog: Catalog) -> list[str]:
    affinity = gpu_step(catalog)["op_tags"][TAG]["pod_spec_config"]["affinity"]["node_affinity"]
    (term,) = affinity["required_during_scheduling_ignored_during_execution"]["node_selector_terms"]
    hosts: list[str] = term["match_expressions"][0]["values"]
    return hosts


def test_a_step_pod_is_never_retried_by_kubernetes(catalog: Catalog) -> None:
    """With a backoff limit, a preempted pod leaves the step in progress for ever; retries are Dagster's."""
    settings = gpu_step(catalog)["op_tags"][TAG]
    assert _job(_pod_settings(settings))["spec"]["backoff_limit"] == 0
    settings["job_spec_config"]["backoff_limit"] = 2
    assert _job(_pod_settings(settings))["spec"]["backoff_limit"] == 2


@pytest.mark.parametrize(
    "path",
    [
        ("pod_spec_config", "node_selektor"),
        ("container_config", "resource"),
        ("job_spec_config", "backofflimit"),
        ("pod_spec_config", "affinity", "node_afinity"),
        ("pod_config",),
    ],
)
def test_a_misspelt_pod_setting_is_noticed(catalog: Catalog, path: tuple[str, ...]) -> None:
    settings = gpu_step(catalog)["op_tags"][TAG]
    inside = settings
    for name in path[:-1]:
        inside = inside[name]
    inside[path[-1]] = {}
    with pytest.raises(Exception, match=path[-1]):
        _pod_settings(settings)


def test_indexes_retry_by_dagster(catalog: Catalog, definitions: dg.Definitions) -> None:
    repair = definitions.get_job_def("repair_indexes")
    for node in repair.nodes:
        if node.name.startswith("indexes__"):
            policy = node.definition.retry_policy
            assert policy is not None
            assert policy.max_retries > 0
