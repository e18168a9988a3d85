"""JSON Schema of the catalog's files, for editors and for `sophia catalog schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from sophia.catalog.kinds import DEFAULTS_KEY, FILES, Section

SCHEMA_FILE = "catalog.schema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def catalog_schema() -> dict[str, Any]:
    """One schema document: `properties` has each file's schema by its name, `$defs` every model's."""
    models = list(dict.fromkeys(section.model for sections in FILES.values() for section in sections))
    _, shared = models_json_schema([(model, "validation") for model in models])
    definitions: dict[str, Any] = shared["$defs"]
    return {
        "$schema": DIALECT,
        "title": "Sophia catalog",
        "description": "Each key of `properties` is a file of the catalog folder.",
        "type": "object",
        "properties": {name: _file(sections, definitions) for name, sections in FILES.items()},
        "additionalProperties": False,
        "$defs": definitions,
    }


def kind_schema(kind: str) -> dict[str, Any]:
    """The schema of one entry of `kind`, such as "index"; raises LookupError for an unknown kind."""
    for sections in FILES.values():
        for section in sections:
            if section.kind == kind:
                return {"$schema": DIALECT, **section.model.model_json_schema()}
    raise LookupError(f'the catalog has no kind "{kind}"')


def schema_text() -> str:
    """The schema document as `catalog.schema.json` holds it."""
    return json.dumps(catalog_schema(), indent=2, ensure_ascii=False) + "\n"


def write_schema(folder: Path) -> Path:
    """Writes the generated schema into the catalog folder; returns the file."""
    file = folder / SCHEMA_FILE
    file.write_text(schema_text(), encoding="utf-8")
    return file


def _file(sections: tuple[Section, ...], definitions: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for section in sections:
        model = section.model.__name__
        item = {"$ref": f"#/$defs/{model}"}
        if section.defaults:
            # A field that the file's defaults give need not stand in the entry.
            definitions[f"{model}Entry"] = {**definitions[model], "required": ["name", "description"]}
            definitions[f"{model}Defaults"] = {**definitions[model], "required": []}
            item = {"$ref": f"#/$defs/{model}Entry"}
            properties[DEFAULTS_KEY] = {"$ref": f"#/$defs/{model}Defaults"}
        properties[section.key] = {"type": "array", "items": item} if section.many else item
    return {"type": "object", "properties": properties, "additionalProperties": False}
