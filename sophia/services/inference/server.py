"""The inference service as a process: see `sophia.services.draining` for how it ends."""

from __future__ import annotations

from threading import Event

from sophia.catalog import Catalog
from sophia.embedding import load_embedder
from sophia.embedding.base import nothing
from sophia.services.draining import serve_until_stopped
from sophia.services.inference.app import create_service
from sophia.services.inference.models import LoadEmbedder
from sophia.services.listening import listen
from sophia.services.pauses import keep_what_is_loaded
from sophia.settings import Settings


def serve(
    settings: Settings, catalog: Catalog, stop_event: Event | None = None, *, load: LoadEmbedder = load_embedder
) -> None:
    """Serve until a signal comes, or until `stop_event` is set; then drain.

    Raises:
        ConfigurationError: the address cannot be listened on or would be open to all, or a model cannot be loaded.
        TemporaryError: the engine's thread has died; another process can serve.
    """
    inference = settings.inference
    # Whoever can stop it goes on with the process afterwards.
    loaded = keep_what_is_loaded if stop_event is None else nothing
    service = create_service(settings, catalog, load=load, loaded=loaded)
    listener = listen(inference.host, inference.port, "SOPHIA_INFERENCE__PORT")
    serve_until_stopped(service, listener, inference.drain_seconds, stop_event)
