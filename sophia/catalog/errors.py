"""What is wrong with a catalog: every problem at once, each with file, line, entry and field."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sophia.errors import ConfigurationError

Code = Literal[
    "unreadable",
    "bad-encoding",
    "bad-yaml",
    "bad-shape",
    "unknown-file",
    "unknown-section",
    "duplicate-key",
    "duplicate-name",
    "unknown-field",
    "missing-field",
    "bad-value",
    "bad-reference",
    "cycle",
    "conflict",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to correct. `line` counts from 1; 0 when there is no line to point at."""

    path: str
    line: int
    code: Code
    message: str
    kind: str | None = None
    name: str | None = None

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        entry = " ".join(part for part in (self.kind, f'"{self.name}"' if self.name is not None else None) if part)
        return f"{place} {entry}: {self.message}" if entry else f"{place} {self.message}"


class CatalogError(ConfigurationError):
    """The catalog does not hold together; `problems` has all of them, `str()` one line each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.path, problem.line)))
        super().__init__("\n".join(map(str, self.problems)))


def suggestion(word: str, candidates: Iterable[str]) -> str:
    """`; did you mean "x"?` for the nearest candidate, or nothing."""
    near = difflib.get_close_matches(word, sorted(candidates), n=1)
    return f'; did you mean "{near[0]}"?' if near else ""
