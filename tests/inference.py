"""An inference service that really serves, in a thread or in a process of its own. Only the model is a cheap one."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sophia.catalog import Catalog
from sophia.embedding import Embedder
from sophia.services.inference.server import serve
from sophia.settings import InferenceSettings, Settings
from tests.embedders import HashEmbedder
from tests.ports import free_port
from tests.service_process import START_SECONDS, ServiceProcess, answers
from tests.waiting import until

SLOW_VARIABLE = "SOPHIA_TEST_EMBED_SECONDS"
LoadAny = Callable[..., Embedder]


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
        thread.join(60)
        assert not thread.is_alive(), "the service does not stop"


class Process(ServiceProcess):
    """A service in a process of its own, with the cheap embedder."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        super().__init__(folder, "tests.inference", "SOPHIA_INFERENCE__PORT", environment)

    def reached(self) -> bool:
        """Whether its embedder is held up."""
        return (self.home / "reached").exists()

    def open(self) -> None:
        """Let its embedder go on."""
        (self.home / "opened").touch()


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
            assert self.opened.wait(60)
