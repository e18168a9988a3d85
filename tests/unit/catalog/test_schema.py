"""The generated JSON Schema is current and agrees with the loader on our own files."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from sophia.catalog import Catalog, default_path
from sophia.catalog.kinds import FILES
from sophia.catalog.schema import SCHEMA_FILE, kind_schema, schema_text, write_schema


def test_the_committed_schema_is_current() -> None:
    committed = (default_path() / SCHEMA_FILE).read_text(encoding="utf-8")
    assert committed == schema_text(), "run sophia.catalog.schema.write_schema(default_path())"


def test_writing_gives_the_same_text(tmp_path: Path) -> None:
    assert write_schema(tmp_path).read_text(encoding="utf-8") == schema_text()


@pytest.mark.parametrize("name", FILES)
def test_our_files_are_valid_by_the_schema(name: str) -> None:
    schema = Catalog.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    data = yaml.safe_load((default_path() / name).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate({name: data})


def test_the_schema_refuses_what_the_loader_refuses() -> None:
    validator = jsonschema.Draft202012Validator(Catalog.json_schema())
    assert not validator.is_valid({"indexes.yaml": {"indexes": [{"name": "memory"}]}})
    assert not validator.is_valid({"index.yaml": {}})
    assert not validator.is_valid({"sources.yaml": {"source": []}})


def test_each_kind_has_a_schema() -> None:
    for sections in FILES.values():
        for section in sections:
            assert json.dumps(kind_schema(section.kind))
    with pytest.raises(LookupError, match='no kind "indexes"'):
        kind_schema("indexes")
