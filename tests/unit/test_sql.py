"""The loader of named SQL, and the files that it reads."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from sophia import sql

FOLDER = Path(sql.__file__).parent
ROOT = FOLDER.parent.parent
FILES = sorted(path.stem for path in FOLDER.glob("*.sql"))


@pytest.mark.parametrize("name", FILES)
def test_every_file_loads_and_keeps_no_comment(name: str) -> None:
    queries = sql.load(name)
    assert queries
    assert not [query for query in queries.values() if re.search(r"^\s*--", query, re.MULTILINE)]


@pytest.mark.parametrize("name", FILES)
def test_every_query_is_used(name: str) -> None:
    """No dead SQL: each name occurs in the Python code as a string."""
    strings: set[str] = set()
    templates: list[str] = []
    for path in ROOT.joinpath("sophia").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [re.escape(v.value) if isinstance(v, ast.Constant) else r"\w+" for v in node.values]
                templates.append("".join(parts))
    unused = [
        query
        for query in sql.load(name)
        if query not in strings and not any(re.fullmatch(t, query) for t in templates if len(t) > 8)
    ]
    assert unused == []


def test_duplicate_and_empty_queries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "twice.sql").write_text("-- name: a\nSELECT 1\n-- name: a\nSELECT 2\n")
    (tmp_path / "empty.sql").write_text("-- name: a\n-- only a comment\n")
    for name in ("twice", "empty"):
        with pytest.raises(ValueError, match="'a' is empty or occurs twice"):
            sql.load(name)
