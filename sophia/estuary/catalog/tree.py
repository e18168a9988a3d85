"""Reads a tree of flow.yaml files: imports followed, referenced configs and schemas put in their place.

Only files below the root's own folder are read: nothing is fetched, and no import leads out of the tree. Every fault is
collected with its file and line, so that one run names all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sophia.catalog.errors import Code, Problem
from sophia.catalog.loader import shown_path
from sophia.catalog.yaml_source import Loc, compose, line_at, plain

KINDS = {"captures": "capture", "collections": "collection", "materializations": "materialization", "tests": "test"}
SCHEMA_KEYS = ("schema", "writeSchema", "readSchema")


@dataclass(frozen=True, slots=True)
class FlowFile:
    """One file as read: `data` is None when it does not hold a mapping."""

    path: Path
    shown: str
    node: yaml.Node
    data: dict[str, Any]

    def problem(
        self, code: Code, message: str, loc: Loc = (), kind: str | None = None, name: str | None = None
    ) -> Problem:
        """A problem at a place in this file."""
        return Problem(self.shown, line_at(self.node, loc), code, message, kind, name)


@dataclass(frozen=True, slots=True)
class Spec:
    """One definition. `kind` is capture, collection, materialization or test; a test's model may be a list."""

    kind: str
    name: str
    model: Any
    file: FlowFile
    loc: Loc

    def problem(self, code: Code, message: str, loc: Loc = ()) -> Problem:
        """A problem of this definition, at the field."""
        return self.file.problem(code, message, (*self.loc, *loc), self.kind, self.name)


@dataclass(slots=True)
class Tree:
    """All definitions of a tree by kind and name, with what could not be read."""

    specs: dict[tuple[str, str], Spec] = field(default_factory=dict)
    files: list[FlowFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def of(self, kind: str) -> Iterator[Spec]:
        """The definitions of one kind."""
        return (spec for (spec_kind, _), spec in self.specs.items() if spec_kind == kind)

    def models(self) -> dict[tuple[str, str], Any]:
        """The definitions without their places."""
        return {key: spec.model for key, spec in self.specs.items()}


def read_tree(root: Path) -> Tree:
    """The tree that begins with the file `root`; never raises for what the files hold."""
    tree = Tree()
    folder = root.resolve().parent
    waiting, seen = [root], set[Path]()
    while waiting:
        path = waiting.pop(0)
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        file = _read(path, tree.problems)
        if file is None:
            continue
        tree.files.append(file)
        waiting += _imports(file, folder, tree.problems)
        for key, kind in KINDS.items():
            section = file.data.get(key)
            for name, model in section.items() if isinstance(section, dict) else ():
                if isinstance(model, dict):
                    model = _inlined(file, key, name, model, folder, tree)
                _add(tree, Spec(kind, name, model, file, (key, name)))
    return tree


def _read(path: Path, problems: list[Problem]) -> FlowFile | None:
    shown = shown_path(path)
    node = compose(path, shown)
    if isinstance(node, Problem):
        problems.append(node)
        return None
    if node is None:
        problems.append(Problem(shown, 0, "bad-shape", "is empty"))
        return None

    def report(line: int, code: Code, message: str) -> None:
        problems.append(Problem(shown, line, code, message))

    data = plain(node, report)
    if not isinstance(data, dict):
        report(1, "bad-shape", "should be a mapping with captures, collections, materializations, tests or import")
        return None
    return FlowFile(path, shown, node, data)


def _imports(file: FlowFile, folder: Path, problems: list[Problem]) -> Iterator[Path]:
    listed = file.data.get("import")
    for number, name in enumerate(listed if isinstance(listed, list) else ()):
        if not isinstance(name, str):
            continue
        target = _inside(file, name, folder)
        if target is None:
            text = f'"{name}" is not a file below this tree; only such imports are read'
            problems.append(file.problem("bad-reference", text, ("import", number)))
        else:
            yield target


def _inside(file: FlowFile, name: str, folder: Path) -> Path | None:
    if "://" in name:
        return None
    target = file.path.parent / name
    return target if target.resolve().is_relative_to(folder) and target.is_file() else None


def _add(tree: Tree, spec: Spec) -> None:
    other = tree.specs.setdefault((spec.kind, spec.name), spec)
    if other is not spec:
        tree.problems.append(spec.problem("duplicate-name", f"is defined in {other.file.shown} already"))


def _inlined(
    file: FlowFile, section: str, name: str, model: dict[str, Any], folder: Path, tree: Tree
) -> dict[str, Any]:
    """The model with the files in it that its endpoint or its schemas name."""

    def read(text: Any, loc: Loc) -> Any:
        if not isinstance(text, str) or "://" in text or "\n" in text:
            return text
        target = _inside(file, text, folder)
        if target is None:
            problem = file.problem("bad-reference", f'"{text}" is not a file below this tree', (section, name, *loc))
            tree.problems.append(problem)
            return {}
        referred = _read(target, tree.problems)
        return referred.data if referred is not None else {}

    result = dict(model)
    for key in SCHEMA_KEYS:
        if key in result:
            result[key] = read(result[key], (key,))
    endpoint = result.get("endpoint")
    if isinstance(endpoint, dict):
        result["endpoint"] = {
            kind: {**value, "config": read(value["config"], ("endpoint", kind, "config"))}
            if isinstance(value, dict) and "config" in value
            else value
            for kind, value in endpoint.items()
        }
    return result
