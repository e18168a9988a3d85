"""Asks a container engine about local images through the `docker` command, read-only."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping

from sophia.platform.systems import SystemUnreachableError

TIMEOUT_SECONDS = 20


class DockerCommand:
    """The engine at `host`, as in DOCKER_HOST."""

    def __init__(self, host: str) -> None:
        self._host = host

    def image_labels(self, reference: str) -> Mapping[str, str] | None:
        """Labels of a local image, None when it is not there; raises SystemUnreachableError."""
        program = shutil.which("docker")
        if program is None:
            raise SystemUnreachableError("the docker command is not installed")
        command = [program, "--host", self._host, "image", "inspect", "--format", "{{json .Config.Labels}}", reference]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise SystemUnreachableError(f"the Docker engine did not answer within {TIMEOUT_SECONDS} s") from None
        if done.returncode == 0:
            labels = json.loads(done.stdout) or {}
            return {str(key): str(value) for key, value in labels.items()}
        if "no such" in done.stderr.lower():
            return None
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise SystemUnreachableError(f"the Docker engine refused: {lines[-1]}")
