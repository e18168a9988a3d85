"""How long do the definitions take to load, over plain `import dagster`?

    python -m benchmarks.graph_load

Each figure is the median of fresh processes, arms interleaved. Larger catalogs are made by copying services.
"""

from __future__ import annotations

import copy
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks.harness import save, show
from sophia.catalog import default_path

ROUNDS = 3
HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "kubernetes",
    "weaviate",
    "snowflake",
    "docker",
    "matplotlib",
)
PLAIN = "import dagster"
LOAD = """
from dagster import Definitions
from pathlib import Path
from sophia.catalog import load
from sophia_assets.definitions import build_definitions
catalog = load(Path({path!r}))
definitions = build_definitions(catalog, "local")
Definitions.validate_loadable(definitions)
count = len(list(definitions.resolve_all_asset_specs()))
"""
PROBE = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
started = time.perf_counter()
count = 0
{body}
seconds = time.perf_counter() - started
print(json.dumps({{"seconds": seconds, "assets": count, "heavy": [n for n in {heavy!r} if n in sys.modules]}}))
"""


def grow(folder: Path, services: int) -> Path:
    """A copy of the catalog with `services` more services."""
    shutil.copytree(default_path(), folder)
    path = folder / "services.yaml"
    document = yaml.safe_load(path.read_text())
    pattern = next(entry for entry in document["services"] if entry["name"] == "mcp_gateway")
    for number in range(services):
        # Copied deep: the dumper writes an alias for a value that it meets twice, and the catalog refuses aliases.
        document["services"].append({**copy.deepcopy(pattern), "name": f"generated_{number:04d}", "ingress": []})
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return folder


def measure(body: str) -> dict[str, object]:
    """One fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(body=body, heavy=HEAVY)], capture_output=True, text=True, check=True
    )
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure, print, save."""
    with tempfile.TemporaryDirectory() as scratch:
        arms = {
            "import dagster": PLAIN,
            "the catalog": LOAD.format(path=str(default_path())),
            "500 more services": LOAD.format(path=str(grow(Path(scratch) / "c500", 500))),
            "2,000 more services": LOAD.format(path=str(grow(Path(scratch) / "c2000", 2000))),
        }
        samples: dict[str, list[float]] = {name: [] for name in arms}
        assets: dict[str, object] = {}
        heavy: dict[str, object] = {}
        for number in range(ROUNDS):
            for name, body in arms.items():
                result = measure(body)
                samples[name].append(float(result["seconds"]))  # type: ignore[arg-type]
                assets[name], heavy[name] = result["assets"], result["heavy"]
            print(f"round {number + 1}/{ROUNDS}", file=sys.stderr)
    plain = statistics.median(samples["import dagster"])
    rows = []
    for name, seconds in samples.items():
        median = statistics.median(seconds)
        rows.append((name, assets[name], f"{median:.2f}", f"{median - plain:.2f}", ", ".join(heavy[name]) or "none"))  # type: ignore[call-overload]
    show("definitions load", ["arm", "assets", "seconds", "over import dagster", "heavy modules"], rows)
    save("graph_load", {"rounds": ROUNDS, "seconds": samples, "assets": assets, "heavy_modules": heavy})


if __name__ == "__main__":
    main()
