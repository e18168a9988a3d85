"""Materialises the local graph in this process and exits with its outcome; `sophia demo` and CI run it.

    python -m jobs.run_local [--only platform|indexes]

One process loads the definitions once and records its runs in DAGSTER_HOME, where the UI shows them.
"""

import argparse
import sys

import dagster as dg

from sophia.catalog import default_path, load
from sophia.settings import load_settings
from sophia_assets.definitions import build_definitions

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"


def main(only: str | None) -> int:
    """Run the jobs; 0 when all succeeded."""
    settings = load_settings()
    definitions = build_definitions(load(settings.catalog or default_path()), settings.profile)
    repository = definitions.get_repository_def()
    succeeded = True
    with dg.DagsterInstance.get() as instance:
        for job in repository.get_all_jobs():
            if job.name == "plan_platform" and only != "indexes":
                succeeded &= job.execute_in_process(instance=instance, raise_on_error=False).success
            elif job.name.startswith("repair_indexes") and only != "platform":
                keys = job.partitions_def.get_partition_keys() if job.partitions_def else []
                tags = {RANGE_START: keys[0], RANGE_END: keys[-1]}
                succeeded &= job.execute_in_process(instance=instance, raise_on_error=False, tags=tags).success
    return 0 if succeeded else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Materialise the local graph in this process.")
    parser.add_argument("--only", choices=["platform", "indexes"])
    sys.exit(main(parser.parse_args().only))
