"""Data to text and templates to text, the same bytes every time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateNotFound

from sophia.errors import SophiaError


class TemplateMissingError(SophiaError, LookupError):
    """`deploy` has no template of that name; the message says where it should be."""


class _Dumper(yaml.CSafeDumper):
    """Never writes anchors: two equal parts of a manifest are two parts."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(document: Mapping[str, Any]) -> str:
    """One YAML document with sorted keys."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=True, allow_unicode=True, width=120)
    return text


def to_yaml_stream(documents: Iterable[Mapping[str, Any]]) -> str:
    """Several YAML documents in the given order."""
    return "---\n".join(to_yaml(document) for document in documents)


def from_yaml_stream(text: str) -> list[dict[str, Any]]:
    """The documents of a stream; empty ones are left out. Raises yaml.YAMLError."""
    return [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]


def to_json(document: Mapping[str, Any]) -> str:
    """One JSON document with sorted keys, indented for people."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def deploy_folder() -> Path:
    """The `deploy` folder of this checkout, or the one below the working directory."""
    checkout = Path(__file__).resolve().parents[2] / "deploy"
    return checkout if checkout.is_dir() else Path.cwd() / "deploy"


@cache
def _environment() -> Environment:
    # Nothing rendered here is HTML: escaping would spoil shell and YAML quotes.
    return Environment(
        loader=FileSystemLoader(deploy_folder()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701
    )


def render_template(name: str, **values: Any) -> str:
    """The template `name` below `deploy`; raises TemplateMissingError or jinja2.UndefinedError."""
    try:
        return _environment().get_template(name).render(**values)
    except TemplateNotFound as missing:
        raise TemplateMissingError(f"there is no template deploy/{missing.name}; add it") from None
