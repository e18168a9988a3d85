"""Reactions: to the inbox, to backlogs, to failed runs. Each bounded in time, each with a reason when it skips."""

from sensors.automation import build_automation_sensors
from sensors.backlog import build_backlog_sensor
from sensors.estuary import build_estuary_sensor
from sensors.failures import run_failure_reason
from sensors.progress import build_progress_sensor

__all__ = [
    "build_automation_sensors",
    "build_backlog_sensor",
    "build_estuary_sensor",
    "build_progress_sensor",
    "run_failure_reason",
]
