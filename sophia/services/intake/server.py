"""The intake as a process: see `sophia.services.draining` for how it ends.

Beside it runs what reads rows again from the source, where the catalog and the environment say how to reach that.
"""

from __future__ import annotations

import ctypes
import threading
from threading import Event

from sophia.catalog import Catalog
from sophia.database import Database
from sophia.errors import ConfigurationError
from sophia.estuary.intake.take import feeds
from sophia.estuary.source.reread import Rereader
from sophia.services.draining import serve_until_stopped
from sophia.services.intake.app import Intake, create_intake
from sophia.services.listening import listen
from sophia.services.worker import Loop, keep_running
from sophia.settings import Settings

# glibc's name of the size from which a block is mapped by itself and goes back to the system when it is freed.
M_MMAP_THRESHOLD = -3
MAPPED_BYTES = 1024 * 1024


def serve(settings: Settings, catalog: Catalog, database: Database, stop_event: Event | None = None) -> None:
    """Serve until a signal comes, or until `stop_event` is set; then drain.

    Raises:
        ConfigurationError: nothing is taken from Estuary in this profile, the address cannot be listened on or would
            be open to all, or the tokens do not fit.
        TemporaryError: the database does not answer at the start.
    """
    _give_memory_back()
    with database.connect("sophia-intake") as connection:
        fed = feeds(connection, catalog, settings.profile)
    if not fed:
        raise ConfigurationError(
            f"no collection comes from Estuary in profile {settings.profile!r}; name a source of kind `estuary` as a "
            "collection's source"
        )
    intake = create_intake(settings.intake, database, fed)
    listener = listen(settings.intake.host, settings.intake.port, "SOPHIA_INTAKE__PORT")
    stop = Event()
    rereading = _reread_beside(intake, settings, catalog, database, stop)
    try:
        serve_until_stopped(intake, listener, settings.intake.drain_seconds, stop_event)
    finally:
        stop.set()
        if rereading is not None:
            # What it has begun is one transaction, so a source that does not answer need not be waited for.
            rereading.join(settings.intake.drain_seconds)


def _give_memory_back() -> None:
    """Keep the heap from growing by holes: by itself glibc raises the threshold to the largest body it has seen."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


def _reread_beside(
    intake: Intake, settings: Settings, catalog: Catalog, database: Database, stop: Event
) -> threading.Thread | None:
    rereader = Rereader(catalog, database, settings)
    if not rereader.configured:
        return None

    def run() -> None:
        try:
            keep_running(Loop("reread", rereader.run, rereader.ready), stop)
        except BaseException as error:
            intake.error = error

    thread = threading.Thread(target=run, name="reread", daemon=True)
    thread.start()
    return thread
