"""Checks flow.yaml files against our schema of them, in sentences that name the file, the entry and the field.

`flow.schema.json` lies beside this module and may be given to an editor. It refuses properties that Estuary would
refuse, and has a hint for those that are often made up.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from sophia.catalog.errors import Code, Problem, suggestion
from sophia.catalog.messages import field_path
from sophia.estuary.catalog.tree import KINDS, FlowFile, Tree

SCHEMA_FILE = Path(__file__).with_name("flow.schema.json")
OWN_IMAGE = re.compile(r"^ghcr\.io/estuary/(?P<name>[^:@]+)")
# Connectors that are asked for again and again, and what to take instead.
INSTEAD = {
    "materialize-weaviate": "use materialize-webhook into Sophia's intake, which writes to Weaviate",
    "materialize-qdrant": "use materialize-webhook into a receiver of your own",
    "materialize-pgvector": "use materialize-postgres, or materialize-webhook into Sophia's intake for embeddings",
}
LONGEST_SHOWN = 60


@cache
def flow_schema() -> dict[str, Any]:
    """The schema, as `flow.schema.json` holds it."""
    schema: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return schema


def schema_problems(tree: Tree) -> Iterator[Problem]:
    """What the schema refuses in each file, and images of connectors that do not exist."""
    for file in tree.files:
        for error in sorted(
            _validator().iter_errors(file.data), key=lambda error: [str(x) for x in error.absolute_path]
        ):
            yield from _described(file, error)
    for spec in (*tree.of("capture"), *tree.of("materialization")):
        match spec.model:
            case {"endpoint": {"connector": {"image": str(image)}}}:
                text = _unknown_image(image, spec.kind)
                if text:
                    yield spec.problem("bad-value", text, ("endpoint", "connector", "image"))


@cache
def _validator() -> Any:
    return Draft202012Validator(flow_schema())


def _unknown_image(image: str, kind: str) -> str | None:
    own = OWN_IMAGE.match(image)
    known: list[str] = flow_schema()["$defs"]["images"]["enum"]
    begin = "source-" if kind == "capture" else "materialize-"
    if own is None:
        return None
    name = own["name"]
    if name not in known:
        instead = INSTEAD.get(name)
        hint = f"; {instead}" if instead else suggestion(name, [other for other in known if other.startswith(begin)])
        return f'endpoint.connector.image: Estuary has no connector "{name}"{hint}'
    if not name.startswith(begin):
        return f'endpoint.connector.image: "{name}" is no connector of a {kind}'
    return None


def _described(file: FlowFile, error: ValidationError) -> Iterator[Problem]:
    path = tuple(error.absolute_path)
    if "propertyNames" in error.absolute_schema_path:
        path = (*path, str(error.instance))
    kind = name = None
    rest: tuple[str | int, ...] = path
    if len(path) > 1 and path[0] in KINDS:
        kind, name, rest = KINDS[str(path[0])], str(path[1]), path[2:]
    field = field_path(rest)
    for code, message, last in _sentences(error):
        where = f"{field}: " if field else ""
        yield file.problem(code, f"{where}{message}", (*path, *last), kind, name)


def _sentences(error: ValidationError) -> Iterator[tuple[Code, str, tuple[str, ...]]]:
    """Code, sentence, and the steps from the error's place to the value at fault."""
    schema: dict[str, Any] = error.schema if isinstance(error.schema, dict) else {}
    hints: dict[str, str] = schema.get("x-hints", {})
    shown = "the value" if schema.get("secret") else _shown(error.instance)
    match error.validator:
        case "additionalProperties" if isinstance(error.instance, dict):
            known = schema.get("properties", {})
            for unknown in (key for key in error.instance if key not in known):
                hint = f"; {hints[unknown]}" if unknown in hints else _nearest(unknown, known)
                yield "unknown-field", f'unknown property "{unknown}"{hint}', (unknown,)
        case "required" if isinstance(error.instance, dict):
            missing = [key for key in error.validator_value if key not in error.instance]
            yield "missing-field", f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} required", ()
        case "enum":
            near = suggestion(str(error.instance), [str(value) for value in error.validator_value])
            values = ", ".join(json.dumps(value) for value in error.validator_value)
            yield "bad-value", f"{shown} is not one of {values}{near}", ()
        case "const":
            yield "bad-value", f"should be {json.dumps(error.validator_value)}", ()
        case "minProperties" | "maxProperties":
            known = ", ".join(schema.get("properties", {}))
            yield "bad-shape", str(schema.get("x-hint", f"should be exactly one of {known}")), ()
        case "not" if "x-hint" in schema:
            yield "conflict", schema["x-hint"], ()
        case _ if "x-hint" in schema:
            yield "bad-value", f"{shown} should be {schema['x-hint']}", ()
        case "type":
            wanted = error.validator_value
            word = wanted if isinstance(wanted, str) else " or ".join(wanted)
            yield "bad-shape", f"{shown} should be of type {word}", ()
        case _:
            yield "bad-value", f"{shown} breaks the rule {error.validator}: {_short(str(error.validator_value))}", ()


def _nearest(word: str, known: Iterable[str]) -> str:
    """A suggestion that also sees through another spelling of the same words."""
    folded = {re.sub(r"[^a-z0-9]", "", other.lower()): other for other in known}
    near = difflib.get_close_matches(re.sub(r"[^a-z0-9]", "", word.lower()), sorted(folded), n=1)
    return f'; did you mean "{folded[near[0]]}"?' if near else ""


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return _short(json.dumps(value, ensure_ascii=False, default=str))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."
