"""What a collection's schema says of one location: is it described, required, and of which types."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

KEY_TYPES = {"boolean", "integer", "string"}
# A schema that refers to itself is followed this far.
DEEPEST = 32


@dataclass(frozen=True, slots=True)
class Location:
    """`types` is None where the schema does not limit them."""

    described: bool
    required: bool
    types: frozenset[str] | None


def locate(schema: Any, pointer: str) -> Location:
    """The location `pointer`, such as `/id`, by every part of the schema that applies to it."""
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    here = [schema]
    required = True
    for part in parts:
        objects = [applied for start in here for applied in _applied(start, schema)]
        required = required and any(part in applied.get("required", ()) for applied in objects)
        here = [
            applied["properties"][part]
            for applied in objects
            if isinstance(applied.get("properties"), dict) and part in applied["properties"]
        ]
    types: frozenset[str] | None = None
    for applied in (applied for start in here for applied in _applied(start, schema)):
        if "type" in applied:
            given = applied["type"]
            named = frozenset([given] if isinstance(given, str) else given)
            types = named if types is None else types & named
    return Location(bool(here), required, types)


def _applied(schema: Any, root: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The schema and all that it includes by allOf and $ref."""
    if not isinstance(schema, dict) or depth > DEEPEST:
        return
    yield schema
    for part in schema.get("allOf", ()):
        yield from _applied(part, root, depth + 1)
    if isinstance(schema.get("$ref"), str):
        yield from _applied(_referred(schema["$ref"], root), root, depth + 1)


def _referred(reference: str, root: Any) -> Any:
    definitions = root.get("$defs", {}) if isinstance(root, dict) else {}
    if not isinstance(definitions, dict) or not reference.startswith("#"):
        return {}
    if reference.startswith("#/$defs/"):
        return definitions.get(reference.removeprefix("#/$defs/"), {})
    anchor = reference.removeprefix("#")
    found = (each for each in definitions.values() if isinstance(each, dict) and each.get("$anchor") == anchor)
    return next(found, {})


def resolvable(schema: Any) -> bool:
    """Whether the schema can be looked into: not one that lies elsewhere or that Estuary infers."""
    if isinstance(schema, dict):
        references = (value for key, value in schema.items() if key == "$ref" and isinstance(value, str))
        return all(value.startswith("#") for value in references) and all(map(resolvable, schema.values()))
    return (
        all(map(resolvable, schema)) if isinstance(schema, list) else not isinstance(schema, str) or "://" not in schema
    )
