"""Reads Dockerfiles and finds what must not be in one; hadolint is asked too when it is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from sophia.catalog.models import Image
from sophia.platform.reconcile import Finding, Severity

SECRET_NAME = re.compile(r"(PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|PRIVATE_KEY|API_KEY|ACCESS_KEY)", re.IGNORECASE)
ASSIGNMENT = re.compile(r"""([A-Za-z_][A-Za-z0-9_]*)(?:=("(?:[^"\\]|\\.)*"|'[^']*'|\S*))?""")
HADOLINT_SEVERITY: dict[str, Severity] = {"error": "error", "warning": "warning"}


@dataclass(frozen=True)
class Instruction:
    """One instruction, continuation lines joined; `line` counts from 1."""

    line: int
    keyword: str
    arguments: str


def parse(text: str) -> tuple[Instruction, ...]:
    """The instructions of a Dockerfile, comments left out."""
    instructions: list[Instruction] = []
    parts: list[str] = []
    start = 0
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        start = start if parts else number
        parts.append(stripped.removesuffix("\\").strip())
        if not stripped.endswith("\\"):
            keyword, _, arguments = " ".join(parts).partition(" ")
            instructions.append(Instruction(start, keyword.upper(), arguments.strip()))
            parts = []
    return tuple(instructions)


def check(path: str, text: str, image: Image, known_bases: frozenset[str]) -> Iterator[Finding]:
    """Findings in the Dockerfile of `image`; `known_bases` are the references of the catalog's images."""
    instructions = parse(text)

    def error(line: int, rule: str, message: str, fix: str) -> Finding:
        return Finding("error", rule, f"{path}:{line}", message, fix)

    stages: set[str] = set()
    final = 0
    for position, item in enumerate(instructions):
        if item.keyword == "FROM":
            final = position
            words = [word for word in item.arguments.split() if not word.startswith("--")]
            base = words[0] if words else ""
            if base not in stages:
                yield from _base(item, base, known_bases, error)
            if len(words) == 3:
                stages.add(words[2])
        elif item.keyword in {"ENV", "ARG"}:
            for name, value in ASSIGNMENT.findall(item.arguments):
                if SECRET_NAME.search(name) and (item.keyword == "ARG" or value):
                    message = f"{item.keyword} {name} would stay in the image's history"
                    yield error(item.line, "secret-in-image", message, "mount it with RUN --mount=type=secret")
    yield from _final_stage(instructions[final:], image, error)


class _Report:
    """The type of `error` above."""

    def __call__(self, line: int, rule: str, message: str, fix: str) -> Finding:
        raise NotImplementedError
