"""The sample database: real English texts that every machine has, and two small hand-written tables.

`public.documents` holds the docstrings of Python's own standard library: read from the source files with `ast`, so
no module is imported and nothing is run. Ids are stable for one Python version.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.rows import TupleRow

from sophia import sql

Connection = psycopg.Connection[TupleRow]
Q = sql.load("sample")
_SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "turtledemo", "ensurepip"}
_SHORTEST = 20


@dataclass(frozen=True, slots=True)
class Docstring:
    """One docstring: `kind` is module, class or function."""

    name: str
    module: str
    kind: str
    title: str
    body: str

    @property
    def id(self) -> int:
        """A stable positive 63-bit id of the name."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big") >> 1


def docstrings(limit: int | None = None) -> Iterator[Docstring]:
    """The public docstrings of the standard library, in the order of their names; at most `limit` of them."""
    root = Path(sysconfig.get_path("stdlib"))
    count = 0
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_FOLDERS & set(relative.parts):
            continue
        parts = [part for part in relative.with_suffix("").parts if part != "__init__"]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for document in _of_tree(tree, ".".join(parts)):
            if limit is not None and count >= limit:
                return
            count += 1
            yield document


def _of_tree(tree: ast.Module, module: str) -> Iterator[Docstring]:
    seen: set[str] = set()

    def visit(node: ast.AST, prefix: str) -> Iterator[Docstring]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{prefix}.{child.name}"
                yield from document(child, name, "class" if isinstance(child, ast.ClassDef) else "function")
                if isinstance(child, ast.ClassDef):
                    yield from visit(child, name)

    def document(
        node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str, kind: str
    ) -> Iterator[Docstring]:
        text = ast.get_docstring(node)
        if text and len(text) >= _SHORTEST and name not in seen:
            seen.add(name)
            yield Docstring(name, module, kind, name, inspect.cleandoc(text))

    yield from document(tree, module, "module")
    yield from visit(tree, module)


def load(
    connection: Connection, *, limit: int | None = None, progress: Callable[[int], None] = lambda rows: None
) -> dict[str, int]:
    """Make and fill the sample tables; rows that are there already are left as they are.

    Returns:
        Rows added, by table.
    """
    connection.execute(Q["create"])
    added: dict[str, int] = {}
    with connection.transaction():
        connection.execute(Q["stage"])
        with connection.cursor().copy(Q["copy_stage"]) as copy:
            for number, d in enumerate(docstrings(limit), start=1):
                copy.write_row((d.id, d.name, d.module, d.kind, d.title, d.body))
                if number % 500 == 0:
                    progress(number)
        added["public.documents"] = connection.execute(Q["documents"]).rowcount
    added["public.conversations"] = connection.execute(Q["conversations"]).rowcount
    added["public.business_metrics"] = connection.execute(Q["business_metrics"]).rowcount
    return added
