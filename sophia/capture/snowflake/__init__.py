"""Changes of Snowflake tables: by a cursor column, or by a stream that is staged in Snowflake first."""

from __future__ import annotations

from sophia.capture.snowflake.capture import SnowflakeCapture, SnowflakeSource
from sophia.capture.snowflake.connection import Account, Session, parse_account
from sophia.capture.snowflake.table import Binding, inspect
from sophia.catalog import Catalog
from sophia.errors import ConfigurationError
from sophia.settings import Settings

__all__ = [
    "Account",
    "Binding",
    "Session",
    "SnowflakeCapture",
    "SnowflakeSource",
    "inspect",
    "parse_account",
    "snowflake_sources",
]


def snowflake_sources(catalog: Catalog, settings: Settings) -> list[SnowflakeSource]:
    """The Snowflake sources of this profile that have collections to capture.

    Raises:
        ConfigurationError: a variable that a source names is not set, or what it holds cannot be read.
    """
    sources = []
    for source in catalog.sources:
        bindings = tuple(
            Binding(collection.table, collection.name, collection.key, collection.snowflake)
            for collection in catalog.collections
            if collection.source.for_profile(settings.profile) == source.name and collection.table is not None
        )
        if source.kind != "snowflake" or not bindings:
            continue
        values: dict[str, str | None] = {}
        for name in (source.url_env, source.private_key_env, source.passphrase_env):
            values[name or ""] = settings.secret(name) if name else None
        url = values[source.url_env or ""]
        if url is None:
            raise ConfigurationError(f"source {source.name!r}: {source.url_env} is not set")
        try:
            account = parse_account(url, values[source.private_key_env or ""], values[source.passphrase_env or ""])
        except ConfigurationError as error:
            raise ConfigurationError(f"source {source.name!r}: {error}") from None
        sources.append(SnowflakeSource(source.name, account, source.staging_schema, bindings))
    return sources
