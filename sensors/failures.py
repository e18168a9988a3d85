"""A failed run says why: the first step's error goes onto the run as a tag, where the list of runs shows it."""

import dagster as dg

REASON = "sophia/reason"
# Tag values are for reading at a glance; the whole error stays in the run's log.
LONGEST = 250


def failure_reason(context: dg.RunFailureSensorContext) -> str:
    """One line: the step that failed first and the innermost error."""
    events = context.get_step_failure_events()
    if not events:
        return (context.failure_event.message or "the run failed before any step").splitlines()[0][:LONGEST]
    event = events[0]
    error = event.step_failure_data.error
    while error is not None and error.cause is not None:
        error = error.cause
    message = " ".join((error.message if error else event.message or "failed").split())
    return f"{event.step_key}: {message}"[:LONGEST]


@dg.run_failure_sensor(
    name="run_failure_reason",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=15,
    description="Writes the reason of a failed run onto the run, as a tag.",
)
def run_failure_reason(context: dg.RunFailureSensorContext) -> None:
    """Tag the failed run."""
    reason = failure_reason(context)
    context.instance.add_run_tags(context.dagster_run.run_id, {REASON: reason})
    context.log.info("run %s: %s", context.dagster_run.run_id, reason)
