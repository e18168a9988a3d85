"""The commands `sophia estuary …`: the catalog that Estuary gets, what it says of itself, and a stand-in of it."""

from __future__ import annotations

import typer

from sophia.cli import estuary_catalog, estuary_rekey, estuary_replay, estuary_stand_in, estuary_status


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    estuary = typer.Typer(help="Estuary Flow: its catalog, its state, and a stand-in of it.", no_args_is_help=True)
    estuary_catalog.register(estuary)
    app.add_typer(estuary, name="estuary")
    estuary_stand_in.register(estuary)
    estuary_status.register(estuary)
    estuary_replay.register(estuary)
    estuary_rekey.register(estuary)
