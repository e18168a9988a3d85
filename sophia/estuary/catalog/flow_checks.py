"""What no definition of a tree can know alone: that names lead somewhere, and that two parts do not undo each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from sophia.catalog.errors import CatalogError, Problem, suggestion
from sophia.catalog.yaml_source import Loc
from sophia.estuary.catalog.flow_schema import schema_problems
from sophia.estuary.catalog.locations import KEY_TYPES, locate, resolvable
from sophia.estuary.catalog.tree import Spec, Tree, read_tree

# What every version of Estuary gives to a trigger's template.
TRIGGER_VARIABLES = {
    "materialization_name",
    "collection_names",
    "connector_image",
    "flow_published_at_min",
    "flow_published_at_max",
}
RUN_IDS = {"flow_run_id", "run_id"}
_EXPRESSION = re.compile(r"\{\{\{?\s*([^{}]*?)\s*\}?\}\}")
_WEBHOOK = re.compile(r"^ghcr\.io/estuary/materialize-webhook[:@]")


def check_file(root: Path) -> Tree:
    """The tree that begins with the file `root`.

    Raises CatalogError with every problem: YAML, the schema, and what definitions say of each other.
    """
    tree = read_tree(root)
    problems = problems_of(tree)
    if problems:
        raise CatalogError(problems)
    return tree


def problems_of(tree: Tree) -> list[Problem]:
    """Everything that is wrong with a tree; the cross-checks only where the schema finds the shapes right."""
    problems = [*tree.problems, *schema_problems(tree)]
    if not problems:
        for kind, check in _CHECKS.items():
            for spec in tree.of(kind):
                problems += check(spec, tree)
        problems += _shared_targets(tree)
    return problems


def _capture(spec: Spec, tree: Tree) -> Iterator[Problem]:
    resources: dict[str, int] = {}
    for number, binding in enumerate(spec.model["bindings"]):
        yield from _names(spec, tree, binding["target"], ("bindings", number, "target"))
        resource = binding["resource"]
        if isinstance(resource, dict):
            stream = {
                key: value
                for key, value in sorted(resource.items())
                if key in ("namespace", "stream", "schema", "table")
            }
            first = resources.setdefault(repr(stream), number)
            if first != number:
                text = f"bindings[{number}].resource: is the same as that of bindings[{first}]"
                yield spec.problem("conflict", text, ("bindings", number, "resource"))


def _collection(spec: Spec, tree: Tree) -> Iterator[Problem]:
    schema = spec.model.get("schema", spec.model.get("writeSchema"))
    if resolvable(schema):
        for number, pointer in enumerate(spec.model["key"]):
            text = _key_fault(schema, pointer)
            if text:
                yield spec.problem("conflict", f"key[{number}]: {pointer} {text}", ("key", number))
    derive = spec.model.get("derive")
    for number, transform in enumerate(derive["transforms"] if derive else ()):
        yield from _names(spec, tree, _source(transform), ("derive", "transforms", number, "source"))


def _key_fault(schema: Any, pointer: str) -> str | None:
    location = locate(schema, pointer)
    if not location.described:
        return "is not in the schema; describe it below `properties`"
    if not location.required:
        return "is not required by the schema; add it to `required`"
    if location.types is None:
        return "has no type in the schema; a key is a string, an integer or a boolean"
    wrong = location.types - KEY_TYPES
    return f"may be {' or '.join(sorted(wrong))}; a key is a string, an integer or a boolean" if wrong else None


def _materialization(spec: Spec, tree: Tree) -> Iterator[Problem]:
    for number, binding in enumerate(spec.model["bindings"]):
        yield from _names(spec, tree, _source(binding), ("bindings", number, "source"))
    connector = spec.model["endpoint"].get("connector", {})
    if _WEBHOOK.match(str(connector.get("image"))):
        yield from _webhook(spec, connector.get("config"))
    yield from _triggers(spec)


def _webhook(spec: Spec, config: Any) -> Iterator[Problem]:
    if not isinstance(config, dict):
        return
    address = str(config["address"])
    urls: dict[str, int] = {}
    for number, binding in enumerate(spec.model["bindings"]):
        if not isinstance(binding["resource"], dict):
            continue
        url = urljoin(address, binding["resource"]["relativePath"])
        first = urls.setdefault(url, number)
        if first != number:
            text = (
                f"bindings[{number}].resource.relativePath: leads where bindings[{first}] leads; nothing else tells "
                "the receiver which collection a request is of"
            )
            yield spec.problem("conflict", text, ("bindings", number, "resource", "relativePath"))


def _triggers(spec: Spec) -> Iterator[Problem]:
    config = spec.model.get("triggers", {}).get("config", [])
    steps: list[tuple[str | int, Any]] = list(config.items() if isinstance(config, dict) else enumerate(config))
    seen: dict[tuple[str, str], str | int] = {}
    for step, trigger in steps:
        loc: Loc = ("triggers", "config", step)
        where = f"triggers.config[{step}]"
        first = seen.setdefault((trigger.get("method", "POST"), trigger["url"]), step)
        if first != step:
            text = f"{where}: has the method and URL of triggers.config[{first}]; Estuary would fire only the first"
            yield spec.problem("conflict", text, loc)
        for name in sorted(_variables(trigger["payloadTemplate"]) - TRIGGER_VARIABLES):
            text = f'{where}.payloadTemplate: the variable "{name}" is not given by every version of Estuary'
            text += (
                "; leave the run's id out and tell deliveries apart by their times"
                if name in RUN_IDS
                else suggestion(name, TRIGGER_VARIABLES)
            )
            yield spec.problem("bad-value", text, (*loc, "payloadTemplate"))


def _variables(template: str) -> set[str]:
    """Names of variables that a Handlebars template reads, without block helpers, `this` and headers."""
    names = set()
    for expression in _EXPRESSION.findall(template):
        word = str(expression).lstrip("#").split()
        if not word or expression.startswith(("/", "!")) or word[-1].startswith(("@", "this", "headers.")):
            continue
        if word[-1] != "else":
            names.add(word[-1])
    return names


def _test(spec: Spec, tree: Tree) -> Iterator[Problem]:
    model: Any = spec.model
    steps = model["steps"] if isinstance(model, dict) else model
    for number, step in enumerate(steps):
        for action, body in step.items():
            name = body["collection"]
            name = name["name"] if isinstance(name, dict) else name
            yield from _names(spec, tree, name, (number, action, "collection"))


def _source(binding: dict[str, Any]) -> str:
    source = binding["source"]
    return str(source["name"] if isinstance(source, dict) else source)


def _names(spec: Spec, tree: Tree, name: str, loc: Loc) -> Iterator[Problem]:
    if ("collection", name) not in tree.specs:
        known = [other.name for other in tree.of("collection")]
        where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc).lstrip(".")
        text = f'{where}: collection "{name}" is not in this tree{suggestion(name, known)}'
        yield spec.problem("bad-reference", text, loc)


def _shared_targets(tree: Tree) -> Iterator[Problem]:
    """Two captures into one collection: their clocks are not comparable, so an older row may win."""
    owner: dict[str, str] = {}
    for spec in tree.of("capture"):
        for number, binding in enumerate(spec.model["bindings"]):
            first = owner.setdefault(binding["target"], spec.name)
            if first != spec.name:
                text = f'bindings[{number}].target: "{binding["target"]}" is written by "{first}" already'
                yield spec.problem("conflict", text, ("bindings", number, "target"))


_CHECKS: dict[str, Callable[[Spec, Tree], Iterator[Problem]]] = {
    "capture": _capture,
    "collection": _collection,
    "materialization": _materialization,
    "test": _test,
}
