"""An inference service that really serves, in a thread or in a process of its own. Only the model is a cheap one."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from sophia.catalog import Catalog
from sophia.embedding import Embedder
from sophia.services.inference.server import serve
from sophia.settings import InferenceSettings, Settings
from tests.embedders import HashEmbedder
from tests.waiting import until

ROOT = Path(__file__).parents[1]
SLOW_VARIABLE = "SOPHIA_TEST_EMBED_SECONDS"
# Importing torch on a busy machine takes its time.
START_SECONDS = 120.0
LoadAny = Callable[..., Embedder]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def inference(
    settings: Settings, catalog: Catalog, load: LoadAny, *, wait: bool = True, **inference: Any
) -> Iterator[str]:
    """A service on a free port of 127.0.0.1; yields its address and ends it in order.

    Args:
        inference: settings of the group `inference`.
    """
    port = free_port()
    group = InferenceSettings(port=port, **inference)
    settings = settings.model_copy(update={"inference": group})
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(settings, catalog, stop), kwargs={"load": load})
    thread.start()
    address = f"http://127.0.0.1:{port}"
    try:
        path = "/ready" if wait else "/health"
        until(lambda: not thread.is_alive() or answers(address, path), "the service", START_SECONDS)
        yield address
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive(), "the service does not stop"


def answers(address: str, path: str = "/ready") -> bool:
    """Whether the service says 200 there."""
    try:
        return httpx.get(f"{address}{path}").status_code == 200
    except httpx.TransportError:
        return False


class Process:
    """A service in a process of its own, with the cheap embedder.

    Attributes:
        address: its base URL.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self._output = folder / "access.jsonl"
        self._errors = folder / "errors.txt"
        self._home = folder / "home"
        known = {"SOPHIA_HOME": str(self._home), "SOPHIA_INFERENCE__PORT": str(port)}
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", "from tests.inference import main; main()"],
                cwd=ROOT,
                stdout=output,
                stderr=errors,
                env={**os.environ, **known, **environment},
            )

    def reached(self) -> bool:
        """Whether its embedder is held up."""
        return (self._home / "reached").exists()

    def open(self) -> None:
        """Let its embedder go on."""
        (self._home / "opened").touch()

    def ready(self) -> None:
        """Wait until it takes requests."""
        until(lambda: self.popen.poll() is not None or answers(self.address), "readiness", START_SECONDS)
        assert self.popen.poll() is None, self.errors

    @property
    def log(self) -> list[str]:
        """Its access log."""
        return self._output.read_text().splitlines()

    @property
    def errors(self) -> str:
        """What it wrote to standard error."""
        return self._errors.read_text()

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self.popen.kill()
        self.popen.wait()


def main() -> None:
    """What the process runs: as `sophia serve inference`, with the cheap embedder.

    It takes SOPHIA_TEST_EMBED_SECONDS for texts that begin with `slow`. At one that begins with `hold` it makes the
    file `reached` in its home, and goes on once there is a file `opened`.
    """
    from sophia.cli import main as command
    from sophia.services.inference import server

    seconds = float(os.environ.get(SLOW_VARIABLE, "0"))

    def cheap(model: Any, precision: Any, settings: Any) -> Embedder:
        def before(texts: Sequence[str]) -> None:
            if texts[0].startswith("slow"):
                time.sleep(seconds)
            elif texts[0].startswith("hold"):
                settings.home.mkdir(exist_ok=True)
                (settings.home / "reached").touch()
                until((settings.home / "opened").exists, "leave to go on", 600)

        embedder = HashEmbedder(model.dimension)
        embedder.before = before
        return embedder

    real = server.serve
    server.serve = lambda settings, catalog: real(settings, catalog, load=cheap)  # type: ignore[assignment,misc]
    sys.argv = ["sophia", "serve", "inference"]
    command()


def hashed(embedder: HashEmbedder) -> LoadAny:
    """Loads that embedder, whatever is asked for."""
    return lambda model, precision, settings: embedder


class Gate:
    """Holds up an embedder's calls for texts that begin with `hold` until it is opened."""

    def __init__(self, embedder: HashEmbedder) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()
        embedder.before = self._before

    def _before(self, texts: Sequence[str]) -> None:
        if any(text.startswith("hold") for text in texts):
            self.reached.set()
            assert self.opened.wait(30)
