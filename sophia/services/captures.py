"""The captures of a profile, each with its loop.

Invariant: a source that is not set up as it must be takes no other with it. Its loop says what to change and ends.
"""

from __future__ import annotations

import threading

from sophia.capture import Capture, CaptureSource, postgres_sources
from sophia.capture.snowflake import SnowflakeCapture, snowflake_sources
from sophia.catalog import Catalog
from sophia.database import Database
from sophia.errors import ConfigurationError
from sophia.services.worker import Loop
from sophia.settings import Settings


def captures(catalog: Catalog, settings: Settings, database: Database) -> tuple[list[Loop], list[CaptureSource]]:
    """A loop for each PostgreSQL and Snowflake source with collections to capture, and those of PostgreSQL."""
    loops: list[Loop] = []
    watched: list[CaptureSource] = []
    for source in catalog.sources:
        alone = catalog.model_copy(update={"sources": (source,)})
        try:
            for found in postgres_sources(alone, settings, database):
                capture = Capture(found, database, settings.capture)
                loops.append(Loop(f"capture {found.name}", capture.run, capture.ready))
                watched.append(found)
            for other in snowflake_sources(alone, settings):
                reader = SnowflakeCapture(other, database, settings.snowflake, settings.capture)
                loops.append(Loop(f"capture {other.name}", reader.run, reader.ready))
        except ConfigurationError as error:
            loops.append(_refused(source.name, error))
    return loops, watched


def _refused(name: str, error: ConfigurationError) -> Loop:
    def run(_stop: threading.Event) -> None:
        raise error

    return Loop(f"capture {name}", run, threading.Event())
