"""Named SQL, kept in files beside each other and loaded once.

A file holds queries separated by `-- name: some_name` lines; comment lines right below the name document it.
`load("inbox")` returns them as `{name: text}` typed as literal strings: none is built from user input. Table
names of index versions are filled in by `psycopg.sql`, never by string formatting.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import LiteralString

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


@cache
def load(module: str) -> dict[str, LiteralString]:
    """The queries of `sophia/sql/<module>.sql`, by name.

    Raises:
        ValueError: a name occurs twice or has no text.
    """
    parts = _NAME.split((Path(__file__).parent / f"{module}.sql").read_text())[1:]
    queries: dict[str, LiteralString] = {}
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        body = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--")).strip()
        if name in queries or not body:
            raise ValueError(f"{module}.sql: query {name!r} is empty or occurs twice")
        queries[name] = body
    return queries
