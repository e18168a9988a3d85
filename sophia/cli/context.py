"""What every command begins with: settings, catalog, database; and how results are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any

import typer

from sophia.catalog import Catalog
from sophia.settings import Settings, load_settings

if TYPE_CHECKING:
    from sophia.stores import Stores

Json = typer.Option(False, "--json", help="Print JSON instead of a table.")


@dataclass(frozen=True)
class Context:
    """Settings with the catalog that they name."""

    settings: Settings

    @cached_property
    def catalog(self) -> Catalog:
        """The catalog, loaded and checked."""
        from sophia.catalog import default_path, load

        return load(self.settings.catalog or default_path())

    @cached_property
    def stores(self) -> Stores:
        """The vector stores."""
        from sophia.stores import Stores

        return Stores(self.settings)


def begin() -> Context:
    """Read the settings; raises SettingsError."""
    return Context(load_settings())


@contextmanager
def connected(context: Context) -> Iterator[tuple[Any, Any]]:
    """(database, connection), both given up afterwards."""
    from sophia.database import open_database

    database = open_database(context.settings)
    try:
        with database.connect("sophia-cli") as connection:
            yield database, connection
    finally:
        if "stores" in context.__dict__:
            context.stores.close()
        database.release()


def show_json(value: Any) -> None:
    """Print a value as JSON; times as ISO 8601."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_encode))


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[str] = ()) -> None:
    """Print a table. Texts are shown as they are: a bracket in one is no markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", title_style="bold", header_style="bold")
    for number, column in enumerate(columns):
        # The first column names the row: it stays whole, the others wrap.
        table.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*("" if value is None else Text(str(value)) for value in row))
    Console().print(table)


def _encode(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def minute(value: datetime | None) -> str | None:
    """A time as it stands in a table."""
    return None if value is None else f"{value:%Y-%m-%d %H:%M}"
