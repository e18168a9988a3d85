"""Reads a catalog folder into a `Catalog`, or says everything that is wrong with it.

Four passes, each going on after a problem, so that one run names all of them: YAML to plain data with
places, plain data to models, references between entries, and what the references imply together.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sophia.catalog.checks import check
from sophia.catalog.errors import CatalogError, Code, Problem, suggestion
from sophia.catalog.expansion import expand_images
from sophia.catalog.kinds import DEFAULTS_KEY, FILES, Section
from sophia.catalog.located import Located
from sophia.catalog.messages import describe
from sophia.catalog.models import Catalog, Image, Service
from sophia.catalog.yaml_source import Report, child, compose, line_of, plain


def default_path() -> Path:
    """The catalog of this checkout, or `deploy/catalog` below the working directory."""
    checkout = Path(__file__).resolve().parents[2] / "deploy" / "catalog"
    return checkout if checkout.is_dir() else Path.cwd() / "deploy" / "catalog"


def load(path: Path | None = None) -> Catalog:
    """The catalog in the folder `path`; a file that is not there is a kind without entries.

    Raises CatalogError with every problem found, never only the first.
    """
    folder = default_path() if path is None else path
    problems: list[Problem] = []
    entries = _read_folder(folder, problems)
    problems += check(entries)
    if problems:
        raise CatalogError(problems)
    return _assemble(entries)


def _read_folder(folder: Path, problems: list[Problem]) -> list[Located]:
    shown = shown_path(folder)
    if not folder.is_dir():
        problems.append(Problem(shown, 0, "unreadable", "is not a folder; it should hold the catalog's files"))
        return []
    entries: list[Located] = []
    for file in sorted(folder.iterdir()):
        if file.suffix not in {".yaml", ".yml"}:
            continue
        if file.name in FILES:
            entries += _read_file(file, FILES[file.name], problems)
        else:
            hint = suggestion(file.name, FILES)
            problems.append(Problem(shown_path(file), 0, "unknown-file", f"is not a catalog file{hint}"))
    return entries


def _read_file(file: Path, sections: tuple[Section, ...], problems: list[Problem]) -> list[Located]:
    shown = shown_path(file)

    def report(line: int, code: Code, message: str) -> None:
        problems.append(Problem(shown, line, code, message))

    root = compose(file, shown)
    if isinstance(root, Problem):
        problems.append(root)
        return []
    if root is None:
        return []
    known = {section.key: section for section in sections}
    if not isinstance(root, yaml.MappingNode):
        report(line_of(root), "bad-shape", f'should be a mapping with the key "{sections[-1].key}"')
        return []
    allowed = {*known, DEFAULTS_KEY} if any(section.defaults for section in sections) else {*known}
    values: dict[str, yaml.Node] = {}
    for key, value in root.value:
        if not isinstance(key, yaml.ScalarNode) or key.value not in allowed:
            word = str(key.value)
            report(line_of(key), "unknown-section", f'unknown key "{word}"{suggestion(word, allowed)}')
        elif key.value in values:
            report(line_of(key), "duplicate-key", f'key "{key.value}" is given twice')
        else:
            values[key.value] = value
    aliased: set[int] = set()
    defaults_node = values.pop(DEFAULTS_KEY, None)
    defaults: dict[str, Any] = {}
    if isinstance(defaults_node, yaml.MappingNode):
        defaults = plain(defaults_node, report, aliased)
    elif defaults_node is not None:
        report(line_of(defaults_node), "bad-shape", f'"{DEFAULTS_KEY}" should be a mapping')
    entries: list[Located] = []
    for key, value in values.items():
        for node in _entry_nodes(known[key], value, report):
            bare = Located(known[key], shown, node, {"name": _written_name(node)})

            def report_entry(line: int, code: Code, message: str, bare: Located = bare) -> None:
                problems.append(Problem(shown, line, code, message, bare.section.kind, bare.name))

            data = {**defaults, **plain(node, report_entry, aliased)}
            entries.append(_validate(replace(bare, data=data, defaults=defaults_node), problems))
    return entries


def _written_name(node: yaml.Node) -> str | None:
    found = child(node, "name")
    return found[1].value if found is not None and isinstance(found[1], yaml.ScalarNode) else None


def _entry_nodes(section: Section, value: yaml.Node, report: Report) -> list[yaml.Node]:
    if not section.many:
        if isinstance(value, yaml.MappingNode):
            return [value]
        report(line_of(value), "bad-shape", f'"{section.key}" should be a mapping')
        return []
    if isinstance(value, yaml.ScalarNode) and value.value in {"", "null", "~"}:
        return []
    if not isinstance(value, yaml.SequenceNode):
        report(line_of(value), "bad-shape", f'"{section.key}" should be a list of entries')
        return []
    nodes: list[yaml.Node] = []
    for item in value.value:
        if isinstance(item, yaml.MappingNode):
            nodes.append(item)
        else:
            report(line_of(item), "bad-shape", f"a {section.kind} should be a mapping")
    return nodes


def _validate(located: Located, problems: list[Problem]) -> Located:
    model = located.section.model
    try:
        # As JSON, because only there does strict mode take a list for a tuple, yet no "1" for 1.
        return replace(located, entry=model.model_validate_json(json.dumps(located.data), strict=True))
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            code, message = describe(model, error)
            problems.append(located.problem(code, message, error["loc"]))
        return located


def _assemble(entries: list[Located]) -> Catalog:
    fields: dict[str, Any] = {}
    for located in entries:
        if located.section.many:
            fields.setdefault(located.section.key, []).append(located.entry)
        else:
            fields[located.section.key] = located.entry
    images: list[Image] = fields.get("images", [])
    services: list[Service] = fields.get("services", [])
    fields["images"], fields["services"] = expand_images(images, services)
    return Catalog(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def shown_path(path: Path) -> str:
    """Relative to the working directory when it lies below it."""
    absolute = path.absolute()
    below = Path.cwd()
    return str(absolute.relative_to(below)) if absolute.is_relative_to(below) else str(absolute)
