"""Classes, tenants and the alias: made, compared, switched and removed.

Every step may be repeated: a class that is there is compared, an alias that leads there stays, a class that is gone is
gone. An alias is put by a call of its own, outside of any transaction, so it is read again afterwards.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sophia.errors import ConfigurationError, FencedError, TemporaryError
from sophia.indexing.versions import IndexVersion
from sophia.stores.weaviate_schema import alias_name, class_name, definition, differences

if TYPE_CHECKING:
    from weaviate import WeaviateAsyncClient

logger = logging.getLogger("sophia.stores")
MIGRATION = "docs/stores_weaviate.md, section 'A class that bears the public name'"


async def ensure(client: WeaviateAsyncClient, version: IndexVersion) -> None:
    """Make the class if it is not there, else check it; if the version serves and nothing has its alias, put that.

    An alias that leads elsewhere is not touched: only a switch may do that, under its lock. Where a class bears the
    alias's name, the version is filled all the same, so that its readers can move when it is level.

    Raises:
        ConfigurationError: there is a class of this name that is another.
    """
    from weaviate.exceptions import UnexpectedStatusCodeError

    name, alias = class_name(version), alias_name(version)
    classes = await client.collections.list_all(simple=True)
    if name not in classes:
        try:
            await client.collections.create_from_dict(definition(version))
        except UnexpectedStatusCodeError:
            # Another process may have made it at the same time; what it is, is checked now.
            if name not in await client.collections.list_all(simple=True):
                raise
    faults = differences(version, await client.collections.export_config(name))
    if faults:
        raise ConfigurationError(
            f"the Weaviate class {name} is not what {version.label} needs: {'; '.join(faults)}. If nothing else reads "
            f"it, delete it, and `sophia repair {version.index_name}` fills it anew; or change the index: a new version"
        )
    if version.state != "serving" or await client.alias.get(alias_name=alias) is not None:
        return
    if alias in classes:
        logger.warning("%s is written without its public name: %s", version.label, _taken(alias))
    else:
        await publish(client, version)


async def publish(client: WeaviateAsyncClient, version: IndexVersion) -> None:
    """Let the alias lead to the version's class, and check that it does.

    Raises:
        ConfigurationError: a class bears the alias's name.
        TemporaryError: the alias leads elsewhere: someone else put it at the same moment, or the server lags behind.
    """
    from weaviate.exceptions import UnexpectedStatusCodeError

    alias, name = alias_name(version), class_name(version)
    there = await client.alias.get(alias_name=alias)
    if there is None or there.collection != name:
        try:
            if there is None:
                await _create(client, alias, name)
            else:
                await client.alias.update(alias_name=alias, new_target_collection=name)
        except UnexpectedStatusCodeError:
            if name not in await client.collections.list_all(simple=True):
                raise FencedError(f"{version.label} has no class {name}; it was retired, or never begun") from None
            raise
        there = await client.alias.get(alias_name=alias)
    if there is None or there.collection != name:
        where = "nowhere" if there is None else f"to {there.collection}"
        raise TemporaryError(f"the alias {alias} leads {where}, not to {name}; it is put again")


async def _create(client: WeaviateAsyncClient, alias: str, name: str) -> None:
    if alias in await client.collections.list_all(simple=True):
        raise ConfigurationError(_taken(alias))
    await client.alias.create(alias_name=alias, target_collection=name)


def _taken(alias: str) -> str:
    return (
        f"Weaviate has a class {alias}, so that no alias can have this name; move its readers and remove it as "
        f"{MIGRATION} says"
    )


async def drop(client: WeaviateAsyncClient, version: IndexVersion) -> None:
    """Delete the version's class, if it is there.

    Raises:
        ConfigurationError: the alias leads to it.
    """
    name = class_name(version)
    there = await client.alias.get(alias_name=alias_name(version))
    if there is not None and there.collection == name:
        raise ConfigurationError(
            f"the alias {there.alias} leads to the class {name}, so that it is not deleted; promote another version "
            "first"
        )
    await client.collections.delete(name)


async def exists(client: WeaviateAsyncClient, name: str) -> bool:
    """Whether there is a class of this name."""
    return bool(await client.collections.exists(name))
