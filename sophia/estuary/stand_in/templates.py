"""The part of Handlebars that payload templates of triggers use: values, `each`, `if`, `unless`, `else`.

Strict and without escaping, as Estuary renders them: a variable that does not exist is an error. There is no helper
and no partial; what is not known here is refused, never left as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sophia.errors import ConfigurationError

_TAG = re.compile(r"\{\{\{\s*(?P<raw>[^{}]+?)\s*\}\}\}|\{\{\s*(?P<tag>[^{}]+?)\s*\}\}")
_NAME = re.compile(r"@?[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*")
_BLOCKS = ("each", "if", "unless")


@dataclass
class _Block:
    kind: str
    path: str
    then: list[str | tuple[str] | _Block] = field(default_factory=list)
    otherwise: list[str | tuple[str] | _Block] | None = None


_Nodes = list[str | tuple[str] | _Block]


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The template with its variables filled in.

    Raises:
        ConfigurationError: a tag is unknown or unclosed, or a variable does not exist.
    """
    return "".join(_render(_parse(template), [variables]))


def _parse(template: str) -> _Nodes:
    root = _Block("root", "")
    stack = [root]
    position = 0
    for tag in _TAG.finditer(template):
        _nodes(stack[-1]).append(template[position : tag.start()])
        position = tag.end()
        text = tag["raw"] or tag["tag"]
        kind, _, path = text.removeprefix("#").partition(" ")
        if text.startswith("#") and kind in _BLOCKS and _NAME.fullmatch(path.strip()):
            block = _Block(kind, path.strip())
            _nodes(stack[-1]).append(block)
            stack.append(block)
        elif text == "else" and len(stack) > 1 and stack[-1].otherwise is None:
            stack[-1].otherwise = []
        elif text.startswith("/") and len(stack) > 1 and text[1:].strip() == stack[-1].kind:
            stack.pop()
        elif _NAME.fullmatch(text) and text != "else":
            _nodes(stack[-1]).append((text,))
        else:
            raise ConfigurationError(
                f"payload template: {{{{{text}}}}} is not known here; use values, each, if, unless"
            )
    if len(stack) > 1:
        raise ConfigurationError(f"payload template: {{{{#{stack[-1].kind}}}}} is not closed")
    _nodes(root).append(template[position:])
    return root.then


def _nodes(block: _Block) -> _Nodes:
    return block.then if block.otherwise is None else block.otherwise


def _render(nodes: _Nodes, scopes: list[Mapping[str, Any]]) -> Iterator[str]:
    for node in nodes:
        match node:
            case str():
                yield node
            case (path,):
                yield _text(_lookup(path, scopes))
            case _Block():
                yield from _block(node, scopes)


def _block(block: _Block, scopes: list[Mapping[str, Any]]) -> Iterator[str]:
    value = _lookup(block.path, scopes)
    if block.kind != "each":
        chosen = block.then if bool(value) == (block.kind == "if") else block.otherwise
        yield from _render(chosen or [], scopes)
    elif not value:
        yield from _render(block.otherwise or [], scopes)
    else:
        items = list(value)
        for number, item in enumerate(items):
            scope = {"this": item, "@index": number, "@first": number == 0, "@last": number == len(items) - 1}
            yield from _render(block.then, [*scopes, scope])


def _lookup(path: str, scopes: list[Mapping[str, Any]]) -> Any:
    first, *rest = path.split(".")
    for scope in reversed(scopes):
        if first in scope:
            value = scope[first]
            break
    else:
        raise ConfigurationError(f"payload template: variable {path!r} does not exist")
    for name in rest:
        if not isinstance(value, Mapping) or name not in value:
            raise ConfigurationError(f"payload template: variable {path!r} does not exist")
        value = value[name]
    return value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
