"""The local installation: which processes make it up, and the DAGSTER_HOME that they share."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

from sophia.catalog import default_path
from sophia.database.connect import Database, ensure_database
from sophia.errors import ConfigurationError
from sophia.services.supervisor import Child
from sophia.settings import Settings

DAGSTER_DATABASE = "dagster"


def project_folder() -> Path:
    """The folder that holds workspace.yaml and the asset packages.

    Raises:
        ConfigurationError: Sophia was installed without its project.
    """
    for folder in (Path.cwd(), *Path.cwd().parents, default_path().parents[1]):
        if (folder / "workspace.yaml").exists() and (folder / "sophia_assets").is_dir():
            return folder
    raise ConfigurationError("no workspace.yaml here; run this in the project's folder")


def dagster_environment(settings: Settings, database: Database) -> dict[str, str]:
    """Variables for Dagster's processes, with DAGSTER_HOME made ready on the platform's database server."""
    home = settings.dagster_home
    home.mkdir(parents=True, exist_ok=True)
    source = project_folder() / "deploy" / "dagster" / "dagster.yaml"
    target = home / "dagster.yaml"
    if not target.exists() or target.read_bytes() != source.read_bytes():
        shutil.copyfile(source, target)
    url = dagster_url(settings, database)
    return {
        "DAGSTER_HOME": str(home),
        "SOPHIA_DAGSTER_POSTGRES_URL": url,
        "SOPHIA_HOME": str(settings.home),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        # A step process that warns about beta interfaces on each line hides what matters.
        "PYTHONWARNINGS": "ignore",
    }


def dagster_url(settings: Settings, database: Database) -> str:
    """Where Dagster keeps its runs: as the settings say, or a database of its own beside Sophia's, made if need be.

    Raises:
        ConfigurationError: the role may not create it.
    """
    if settings.dagster_postgres_url is not None:
        return settings.dagster_postgres_url.get_secret_value()
    try:
        ensure_database(database.url, DAGSTER_DATABASE)
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"the role may not create the database {DAGSTER_DATABASE!r} for Dagster's runs; "
            "create it, or set SOPHIA_DAGSTER_POSTGRES_URL"
        ) from error
    if database.embedded is not None:
        return database.embedded.url(DAGSTER_DATABASE)
    return urlunsplit(urlsplit(database.url)._replace(path=f"/{DAGSTER_DATABASE}"))


def require_free_ports(ports: Mapping[str, int]) -> None:
    """Check that loopback ports can be listened on; `ports` is by the option or variable that sets each, 0 for none.

    Raises:
        ConfigurationError: naming every port that is in use or wanted twice, and what sets it.
    """
    taken = []
    wanted: dict[int, str] = {}
    for name, port in ports.items():
        if port == 0:
            continue
        if port in wanted:
            taken.append(f"port {port} is wanted by both {wanted[port]} and {name}; choose another for one of them")
            continue
        wanted[port] = name
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                taken.append(f"port {port} is in use; choose another with {name}")
    if taken:
        raise ConfigurationError("\n".join(taken))


def sophia_command(*arguments: str) -> list[str]:
    """The command line of `sophia …` with this Python."""
    return [sys.executable, "-m", "sophia", *arguments]


def local_processes(settings: Settings, environment: dict[str, str], dagster_port: int) -> list[Child]:
    """Everything that `make up` runs, in the order of start."""
    folder = project_folder()
    logs = settings.home / "logs"
    workspace = str(folder / "workspace.yaml")
    binaries = Path(sys.executable).parent

    def child(name: str, *command: str) -> Child:
        return Child(name, command, logs / f"{name}.log", environment | {"PWD": str(folder)})

    return [
        child("capture", *sophia_command("-v", "capture")),
        child("indexer", *sophia_command("-v", "indexer")),
        child("console", *sophia_command("-v", "console")),
        child(
            "dagster-webserver",
            str(binaries / "dagster-webserver"),
            *("-w", workspace, "-h", "127.0.0.1", "-p", str(dagster_port)),
        ),
        child("dagster-daemon", str(binaries / "dagster-daemon"), "run", "-w", workspace),
    ]
