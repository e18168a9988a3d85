"""deploy/dagster/dagster.yaml, the DAGSTER_HOME of the local profile, and workspace.yaml."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config

ROOT = Path(__file__).parents[3]
FILE = ROOT / "deploy" / "dagster" / "dagster.yaml"


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """The file as Dagster validates it: an unknown key or a wrong type raises."""
    shutil.copy(FILE, tmp_path)
    found, _ = dagster_instance_config(str(tmp_path))
    return dict(found)


def test_a_cancelled_run_frees_its_pool_slots(config: dict[str, Any]) -> None:
    """Dagster has no default: without the number a cancelled run keeps its slots for ever."""
    monitoring = config["run_monitoring"]
    assert monitoring["enabled"] is True
    assert 0 < monitoring["free_slots_after_run_end_seconds"] <= 600
    assert 0 < monitoring["start_timeout_seconds"] <= 600


def test_pools_count_steps(config: dict[str, Any]) -> None:
    assert config["concurrency"]["pools"] == {"granularity": "op", "default_limit": 1}
    assert config["concurrency"]["runs"]["max_concurrent_runs"] >= 1


def test_launched_runs_are_queued(config: dict[str, Any]) -> None:
    assert config["run_coordinator"]["class"] == "QueuedRunCoordinator"


def test_ticks_are_pruned(config: dict[str, Any]) -> None:
    """A sensor each ten seconds writes three million ticks a year."""
    retention = config["retention"]
    assert 0 < retention["schedule"]["purge_after_days"] <= 90
    assert 0 < retention["sensor"]["purge_after_days"]["skipped"] <= 7


def test_nothing_is_sent_home(config: dict[str, Any]) -> None:
    assert config["telemetry"]["enabled"] is False
    assert config["nux"]["enabled"] is False


def test_storage_is_the_platforms_database(config: dict[str, Any]) -> None:
    """By a variable: the file holds no address and no password."""
    assert config["storage"] == {"postgres": {"postgres_url": {"env": "SOPHIA_DAGSTER_POSTGRES_URL"}}}


@pytest.mark.parametrize(
    "fault",
    [{"run_monitorin": {}}, {"concurrency": {"pools": {"granularity": "steps"}}}, {"retention": {"sensors": {}}}],
)
def test_a_fault_in_the_file_is_noticed(tmp_path: Path, fault: dict[str, Any]) -> None:
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(yaml.safe_load(FILE.read_text()) | fault))
    with pytest.raises((dg.DagsterInvalidConfigError, dg.DagsterInvariantViolationError)):
        dagster_instance_config(str(tmp_path))


def test_workspace_names_what_is_there() -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text())
    (location,) = workspace["load_from"]
    module = location["python_module"]["module_name"]
    assert importlib.util.find_spec(module) is not None
    assert (ROOT / location["python_module"]["working_directory"]).resolve() == ROOT
