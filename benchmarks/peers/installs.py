"""A virtual environment for each peer, so that their dependencies meet neither each other's nor ours."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
# Whatever a peer or its dependencies would send home, and what they would download at the start.
QUIET = {
    "COCOINDEX_DISABLE_USAGE_TRACKING": "1",
    "DO_NOT_TRACK": "1",
    "SCARF_NO_ANALYTICS": "true",
    "ANONYMIZED_TELEMETRY": "False",
    "DD_TRACE_ENABLED": "false",
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


class UnavailableError(Exception):
    """A peer that cannot be installed or cannot run; the message says why, in a line."""


def cache_folder() -> Path:
    """Where the environments are kept: `XDG_CACHE_HOME/sophia-peers`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sophia-peers"


def binaries(peer: str) -> Path:
    """The folder with a peer's executables, installed if it is not yet, or with other versions.

    Raises:
        UnavailableError: pip does not install it.
    """
    requirements = (HERE / f"requirements-{peer}.txt").read_text()
    folder = cache_folder() / peer
    stamp = folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != requirements:
        print(f"installing {peer} into {folder}")
        venv.create(folder, with_pip=True, clear=True)
        done = subprocess.run(
            [
                *(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                *("-r", HERE / f"requirements-{peer}.txt"),
            ],
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise UnavailableError(f"pip does not install it: {lines[-1] if lines else done.returncode}")
        stamp.write_text(requirements)
    return folder / "bin"


def run(command: list[str | Path], environment: dict[str, str]) -> None:
    """Run a peer's set-up command.

    Raises:
        UnavailableError: it failed; the message is its last line.
    """
    done = subprocess.run(
        command, env=os.environ | QUIET | environment, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise UnavailableError(f"{Path(command[0]).name} ends with {done.returncode}: {lines[-1] if lines else ''}")
