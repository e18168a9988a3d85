"""YAML with places: a file is composed to nodes, so that every value knows its line.

Plain data is made here rather than by PyYAML: a key given twice, an alias or a tag is an error, and a
date stays text. Aliases are refused because a value should be readable where it stands, and because a
few lines of them can stand for gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sophia.catalog.errors import Code, Problem

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Loc = tuple[str | int, ...]
Report = Callable[[int, Code, str], None]

_constructor: Any = yaml.constructor.SafeConstructor()


def compose(file: Path, shown: str) -> yaml.Node | Problem | None:
    """The root node of a YAML file; None when it is empty, a Problem when it cannot be read."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        return Problem(shown, 0, "unreadable", f"cannot be read: {error.strerror}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return Problem(shown, line, "bad-encoding", f"is not UTF-8: {error.reason}")
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        return Problem(shown, line, "bad-yaml", f"is not valid YAML: {error.problem}")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return Problem(shown, line, "bad-yaml", f"is not valid YAML: {error.reason}")
    return node


def line_of(node: yaml.Node) -> int:
    """The line, from 1, on which the node begins."""
    return int(node.start_mark.line) + 1


def plain(node: yaml.Node, report: Report, seen: set[int] | None = None) -> Any:
    """The node as dicts, lists and scalars; reports what YAML allows and a catalog does not."""
    seen = set() if seen is None else seen
    if id(node) in seen:
        report(line_of(node), "bad-yaml", "an alias stands for this value; write it out")
        return None
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                report(line_of(key), "bad-yaml", "a key must be a plain word")
                continue
            if key.value in mapping:
                report(line_of(key), "duplicate-key", f'key "{key.value}" is given twice')
            mapping[key.value] = plain(value, report, seen)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [plain(item, report, seen) for item in node.value]
    return _scalar(node, report)


def _scalar(node: yaml.Node, report: Report) -> Any:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    text: str = node.value
    match kind:
        case "str" | "timestamp" | "value":
            return text
        case "null":
            return None
        case "bool":
            return _constructor.construct_yaml_bool(node)
        case "int":
            return _constructor.construct_yaml_int(node)
        case "float":
            return _constructor.construct_yaml_float(node)
    report(line_of(node), "bad-yaml", f"the tag {node.tag} is not used here")
    return text


def child(node: yaml.Node, step: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """The node that holds the place (a key, or an item itself) and the value below `step`, if any."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == step:
                return key, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None


def line_at(node: yaml.Node, loc: Loc) -> int:
    """The line of the deepest part of `loc` that the file holds."""
    line = line_of(node)
    for step in loc:
        found = child(node, step)
        if found is None:
            return line
        place, node = found
        line = line_of(place)
    return line
