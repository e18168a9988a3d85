"""The graph as a whole: it loads, in both profiles, every asset says who it is, and nothing heavy comes with it.

The snapshot shows a reviewer what a change of the catalog or of a factory does to the graph. To write it anew:

    SOPHIA_TEST_WRITE_SNAPSHOT=1 pytest tests/unit/graph/test_definitions.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph

from sophia.catalog import Catalog
from sophia.catalog.models import Entry
from sophia.errors import SettingsError
from sophia_assets.definitions import build_definitions
from sophia_assets.keys import PLATFORM_KINDS, shard_names, shard_number
from tests.catalogs import changed

ROOT = Path(__file__).parents[3]
SNAPSHOT = Path(__file__).with_name("graph.txt")
WRITE = "SOPHIA_TEST_WRITE_SNAPSHOT"
HEAVY = {
    "torch",
    "transformers",
    "sentence_transformers",
    "kubernetes",
    "weaviate",
    "snowflake",
    "docker",
    "matplotlib",
    "pyarrow",
}
# What the cluster profile must be told; none of it is reached when the definitions load.
CLUSTER = {
    "SOPHIA_PROFILE": "cluster",
    "SOPHIA_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
    "SOPHIA_KUBE_CONTEXT": "none",
    "SOPHIA_WEAVIATE_URL": "http://127.0.0.1:1",
}
OURS = ("sources", "collections", "indexes", "serving", *PLATFORM_KINDS)


def test_both_profiles_validate(definitions: dg.Definitions, cluster_definitions: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(definitions)
    dg.Definitions.validate_loadable(cluster_definitions)


def test_every_asset_says_who_it_is(graph: AssetGraph) -> None:
    faults = [
        f"{key.to_user_string()} has no {what}"
        for key in graph.get_all_asset_keys()
        for node in [graph.get(key)]
        for what in ("group_name", "owners", "kinds", "description", "code_version")
        if not getattr(node, what)
    ]
    assert faults == []
    assert {graph.get(key).group_name for key in graph.get_all_asset_keys()} <= set(OURS)


def test_every_entry_of_the_catalog_is_an_asset(catalog: Catalog, graph: AssetGraph) -> None:
    kinds = ("nodes", "images", "services", "sources", "collections", "indexes", "secrets", "workflows", "frontends")
    wanted = {dg.AssetKey([kind, entry.name]) for kind in kinds for entry in getattr(catalog, kind)}
    assert wanted <= graph.get_all_asset_keys()


def test_every_dependency_is_an_asset(graph: AssetGraph) -> None:
    ghosts = {
        parent.to_user_string()
        for key in graph.get_all_asset_keys()
        for parent in graph.get(key).parent_keys
        if not graph.has(parent) or graph.get(parent).description is None
    }
    assert ghosts == set()


def test_the_chains_are_whole(graph: AssetGraph) -> None:
    """image → service, secret → service, source → collection → index, service → index, service → the edge."""
    edges = {
        (parent.path[0], key.path[0]) for key in graph.get_all_asset_keys() for parent in graph.get(key).parent_keys
    }
    assert edges >= {
        ("images", "images"),
        ("images", "services"),
        ("secrets", "services"),
        ("cluster", "services"),
        ("nodes", "cluster"),
        ("services", "services"),
        ("sources", "collections"),
        ("collections", "indexes"),
        ("services", "indexes"),
        ("services", "workflows"),
        ("services", "frontends"),
        ("secrets", "environments"),
    }
    documents = dg.AssetKey(["indexes", "documents"])
    assert dg.AssetKey(["sources", "sample"]) in _upstream(graph, documents)
    assert {key.path[0] for key in _upstream(graph, documents)} >= {"images", "secrets", "nodes", "services"}


def _upstream(graph: AssetGraph, key: dg.AssetKey) -> set[dg.AssetKey]:
    found: set[dg.AssetKey] = set()
    waiting = [key]
    while waiting:
        for parent in graph.get(waiting.pop()).parent_keys - found:
            found.add(parent)
            waiting.append(parent)
    return found


def test_the_graph_is_as_the_snapshot_shows(definitions: dg.Definitions) -> None:
    shown = _describe(definitions)
    if os.environ.get(WRITE):
        SNAPSHOT.write_text(shown)
    assert shown == SNAPSHOT.read_text(), f"if this is meant, run `{WRITE}=1 pytest {Path(__file__).name}`"


def _describe(definitions: dg.Definitions) -> str:
    """Assets by group with their number of dependencies and checks; then jobs, schedules and sensors."""
    graph = definitions.resolve_asset_graph()
    repository = definitions.get_repository_def()
    groups: dict[str, list[str]] = defaultdict(list)
    checks: dict[str, set[str]] = defaultdict(set)
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        partitions = f", {len(node.partitions_def.get_partition_keys())} partitions" if node.partitions_def else ""
        checks[node.group_name] |= {check.name for check in node.check_keys}
        groups[node.group_name].append(
            f"  {'/'.join(key.path)}: {len(node.parent_keys)} deps, {len(node.check_keys)} checks{partitions}"
        )
    lines: list[str] = []
    for group in sorted(groups):
        names = f" (checks: {', '.join(sorted(checks[group]))})" if checks[group] else ""
        lines += [f"{group}: {len(groups[group])}{names}", *groups[group], ""]
    lines += ["jobs", *(f"  {name}" for name in sorted(j.name for j in repository.get_all_jobs() if j.name[0] != "_"))]
    lines += ["", "schedules", *sorted(f"  {s.name}: {s.cron_schedule}" for s in repository.schedule_defs)]
    lines += ["", "sensors", *sorted(f"  {s.name}: {s.sensor_type.name.lower()}" for s in repository.sensor_defs)]
    return "\n".join(lines) + "\n"


def test_schedules_and_sensors_run_without_a_person(definitions: dg.Definitions) -> None:
    repository = definitions.get_repository_def()
    assert {s.name for s in repository.schedule_defs if s.default_status != dg.DefaultScheduleStatus.RUNNING} == set()
    assert {s.name for s in repository.sensor_defs if s.default_status != dg.DefaultSensorStatus.RUNNING} == set()


def test_automation_sensors_share_out_the_platform(definitions: dg.Definitions) -> None:
    """Every asset with a condition is under exactly one sensor: none is forgotten, none evaluated twice."""
    graph = definitions.resolve_asset_graph()
    repository = definitions.get_repository_def()
    targets = [
        sensor.asset_selection.resolve(graph)
        for sensor in repository.sensor_defs
        if isinstance(sensor, dg.AutomationConditionSensorDefinition)
    ]
    conditioned = {key for key in graph.get_all_asset_keys() if graph.get(key).automation_condition is not None}
    assert conditioned
    assert sum(len(target) for target in targets) == len(set().union(*targets))
    assert set().union(*targets) == conditioned


def test_partitions_are_shards(catalog: Catalog, graph: AssetGraph) -> None:
    for index in catalog.indexes:
        partitions = graph.get(dg.AssetKey(["indexes", index.name])).partitions_def
        assert partitions is not None
        assert partitions.get_partition_keys() == shard_names(index.shards)
        assert index.shards & (index.shards - 1) == 0


@pytest.mark.parametrize("shards", [1, 2, 4, 16, 32, 256])
def test_shard_names_sort_and_refine(shards: int) -> None:
    """Twice the shards split each one in two: shard s becomes 2s and 2s + 1, beside each other."""
    names = shard_names(shards)
    assert [shard_number(name) for name in names] == list(range(shards))
    assert names == sorted(names)
    finer = shard_names(2 * shards)
    assert [shard_number(name) // 2 for name in finer] == [number for number in range(shards) for _ in range(2)]


def _loaded(environment: dict[str, str]) -> set[str]:
    """Top packages in a new interpreter that has loaded the definitions as Dagster does, in that environment."""
    code = (
        "import sys, sophia_assets.definitions as m; d = m.defs(); d.get_repository_def(); "
        "print('executor', d.executor.name); print(*sorted({n.split('.')[0] for n in sys.modules}))"
    )
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SOPHIA_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ours | environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_loading_imports_nothing_heavy() -> None:
    """Every step process, sensor tick and code server pays for these imports."""
    loaded = _loaded({})
    assert "in_process" in loaded
    assert loaded & HEAVY == set()


def test_cluster_profile_loads_with_its_executor_and_reaches_nothing() -> None:
    loaded = _loaded(CLUSTER)
    # Its executor needs the Kubernetes client; models and stores still stay out.
    assert "k8s" in loaded
    assert loaded & (HEAVY - {"kubernetes"}) == set()


def test_cluster_profile_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from sophia_assets.definitions import defs

    for name, value in CLUSTER.items():
        if name != "SOPHIA_WEAVIATE_URL":
            monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="SOPHIA_WEAVIATE_URL: is required in the cluster profile"):
        defs()


def test_profiles_differ_in_executor_and_sources_only(
    definitions: dg.Definitions, cluster_definitions: dg.Definitions
) -> None:
    local, cluster = definitions.resolve_asset_graph(), cluster_definitions.resolve_asset_graph()
    assert local.get_all_asset_keys() == cluster.get_all_asset_keys()
    names = [{job.name for job in d.get_repository_def().get_all_jobs()} for d in (definitions, cluster_definitions)]
    assert names[0] <= names[1]
    # Where documents come from and where vectors go is the profile's choice, nothing else is.
    moved = {
        key.path[0] for key in local.get_all_asset_keys() if local.get(key).parent_keys != cluster.get(key).parent_keys
    }
    assert moved <= {"collections", "indexes"}


def test_five_hundred_entries_load_in_seconds(catalog: Catalog) -> None:
    service, image, index = catalog.services[0], next(i for i in catalog.images if i.external), catalog.indexes[0]
    grown = changed(
        catalog,
        services=(*catalog.services, *(_renamed(service, f"generated_{n}") for n in range(250))),
        images=(*catalog.images, *(_renamed(image, f"generated-{n}") for n in range(200))),
        indexes=(*catalog.indexes, *(_renamed(index, f"generated_{n}") for n in range(50))),
    )
    began = time.process_time()
    definitions = build_definitions(grown, "local")
    dg.Definitions.validate_loadable(definitions)
    seconds = time.process_time() - began
    assert len(definitions.resolve_asset_graph().get_all_asset_keys()) >= 650
    # Measured 2.5 s; quadratic growth, which Dagster had once, would be a minute.
    assert seconds < 20


def _renamed(entry: Entry, name: str) -> Any:
    return entry.model_copy(update={"name": name})
