"""The key that a collection's documents are kept by, where the catalog may have come to name another."""

from __future__ import annotations

from collections.abc import Sequence

from sophia.catalog.models import Collection
from sophia.errors import ConfigurationError


def kept_key(collection: Collection, kept: Sequence[str]) -> tuple[str, ...]:
    """The columns of a collection's key; empty where neither the catalog nor the inbox names any.

    Args:
        kept: what its documents are kept by, as the inbox has it.

    Raises:
        ConfigurationError: the catalog names another.
    """
    if collection.key and kept and tuple(kept) != collection.key:
        raise another_key(collection.name, kept, collection.key)
    return collection.key or tuple(kept)


def another_key(name: str, kept: Sequence[str], wanted: Sequence[str]) -> ConfigurationError:
    """The error where a collection's documents are kept by another key than they come with."""
    return ConfigurationError(
        f"the documents of collection {name!r} are kept by the key ({', '.join(kept)}), and the catalog's key is "
        f"({', '.join(wanted)}): each would get another id and the old ones would stay; name the key that they are "
        f"kept by, or begin anew with `sophia estuary rekey {name}`"
    )
