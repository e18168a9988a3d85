"""Reads Dockerfiles and finds what must not be in one; hadolint is asked too when it is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sophia.catalog.models import Image
from sophia.platform.reconcile import Finding, Severity

SECRET_NAME = re.compile(r"(PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|PRIVATE_KEY|API_KEY|ACCESS_KEY)", re.IGNORECASE)
ASSIGNMENT = re.compile(r"""([A-Za-z_][A-Za-z0-9_]*)(?:=("(?:[^"\\]|\\.)*"|'[^']*'|\S*))?""")
HADOLINT_SEVERITY: dict[str, Severity] = {"error": "error", "warning": "warning"}
HADOLINT_TIMEOUT_SECONDS = 30


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
    stages: set[str] = set()
    final = 0
    for position, item in enumerate(instructions):
        where = f"{path}:{item.line}"
        if item.keyword == "FROM":
            final = position
            words = [word for word in item.arguments.split() if not word.startswith("--")]
            if words and words[0] not in stages:
                yield from _check_base(where, words[0], known_bases)
            if len(words) == 3:
                stages.add(words[2])
        elif item.keyword in {"ENV", "ARG"}:
            yield from _check_variables(where, item)
    yield from _check_final_stage(path, instructions[final:], image)


def _check_base(where: str, base: str, known_bases: frozenset[str]) -> Iterator[Finding]:
    name, _, tag = base.rpartition("/")[2].partition("@")[0].partition(":")
    if "@sha256:" not in base and (not tag or tag == "latest"):
        yield Finding("error", "base-not-pinned", where, f"{base} has no fixed tag", "name a tag or a digest")
    elif base not in known_bases:
        fix = f'add "{name}" to images.yaml or build on an image that is there'
        yield Finding("error", "base-not-in-catalog", where, f"{base} is not an image of the catalog", fix)


def _check_variables(where: str, item: Instruction) -> Iterator[Finding]:
    for name, value in ASSIGNMENT.findall(item.arguments):
        # An ARG needs no default to leak: its value at build time stays in the image's history.
        if SECRET_NAME.search(name) and (value or item.keyword == "ARG"):
            message = f"{item.keyword} {name} would stay in the image"
            yield Finding("error", "secret-in-image", where, message, "mount it with RUN --mount=type=secret")


def _check_final_stage(path: str, stage: Sequence[Instruction], image: Image) -> Iterator[Finding]:
    users = [item for item in stage if item.keyword == "USER"]
    if not users:
        yield Finding("error", "root-user", path, "the final stage names no USER", f"end it with USER {image.user}")
    elif users[-1].arguments.partition(":")[0] in {"root", "0"}:
        where = f"{path}:{users[-1].line}"
        yield Finding("error", "root-user", where, "the image runs as root", f"end it with USER {image.user}")
    exposed = {
        int(word.partition("/")[0])
        for item in stage
        if item.keyword == "EXPOSE"
        for word in item.arguments.split()
        if word.partition("/")[0].isdigit()
    }
    for port in sorted(set(image.ports) - exposed):
        yield Finding("error", "port-not-exposed", path, f"port {port} is not exposed", f"add EXPOSE {port}")
    checks = [item.arguments for item in stage if item.keyword == "HEALTHCHECK"]
    asked = bool(checks) and checks[-1].strip().upper() != "NONE"
    if image.health_path is not None and not asked:
        fix = f"add a HEALTHCHECK that asks {image.health_path}"
        yield Finding("error", "no-health-check", path, "it serves a port and has no health check", fix)
    elif (image.ports or exposed) and not checks:
        fix = "add a HEALTHCHECK, or HEALTHCHECK NONE with the reason"
        yield Finding("error", "no-health-check", path, "it serves a port and says nothing about its health", fix)


def hadolint(path: str, text: str) -> Iterator[Finding]:
    """What hadolint finds; one info finding when it is not installed."""
    program = shutil.which("hadolint")
    if program is None:
        yield Finding("info", "not-scanned", path, "hadolint is not installed", "install it to have more rules checked")
        return
    try:
        done = subprocess.run(
            [program, "--no-color", "--no-fail", "--format", "json", "-"],
            input=text,
            capture_output=True,
            text=True,
            timeout=HADOLINT_TIMEOUT_SECONDS,
            check=True,
        )
        results = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as problem:
        yield Finding("warning", "not-scanned", path, f"hadolint failed: {type(problem).__name__}", "run it by hand")
        return
    for result in results:
        severity = HADOLINT_SEVERITY.get(result["level"], "info")
        yield Finding(severity, str(result["code"]), f"{path}:{result['line']}", str(result["message"]))
