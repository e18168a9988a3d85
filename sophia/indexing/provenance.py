"""Who wrote: the process behind each `run` of the ledger, the batches and the stores."""

from __future__ import annotations

import importlib.metadata
import json
import socket
import uuid
from functools import cache

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.settings import Settings

Q = sql.load("provenance")
PACKAGE = "sophia-platform"


def register_run(
    connection: psycopg.Connection[TupleRow], kind: str, settings: Settings, *, run: str | None = None
) -> str:
    """Record who is about to write, and return the id to write under.

    Args:
        kind: `live`, `dagster` or `cli`.
        run: the id; `<kind>/<eight hex digits>` if unset. The steps of one Dagster run share one.
    """
    name = run or f"{kind}/{uuid.uuid4().hex[:8]}"
    connection.execute(
        Q["register"],
        {
            "run": name,
            "kind": kind,
            "code": settings.code_version or code_version(),
            "image": settings.image,
            "host": socket.gethostname(),
        },
    )
    return name


@cache
def code_version() -> str:
    """The installed version, with the commit where the package was installed from a repository.

    Git itself is never asked: a production image has neither git nor the repository. An image that is built from a
    checkout says its commit in SOPHIA_CODE_VERSION.
    """
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id")
    return f"{package.version}+{commit[:12]}" if commit else package.version
