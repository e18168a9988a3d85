"""The steps that every platform kind goes through, as plain data.

`render` says what should be, `observe` what is, `plan` the difference, `verify` whether what should be is
sound. Rendering and planning are pure: the same catalog gives the same text, byte for byte, and a plan is
empty exactly when nothing is to do. What cannot be observed is `unknown`, never taken for absent: such a plan
shows everything that is wanted and says why nothing is known. Nothing here changes an outside system.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal, Protocol, TypeVar

State = Literal["absent", "present", "unknown"]
Action = Literal["create", "update", "delete", "none"]
Severity = Literal["error", "warning", "info"]


class Named(Protocol):
    """Anything that a reconciler can take: it has a name."""

    @property
    def name(self) -> str:
        """Unique within its kind."""
        ...


EntryT = TypeVar("EntryT", bound=Named)


def _frozen(values: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(sorted(values.items())))


def files_digest(files: Mapping[str, str]) -> str:
    """SHA-256 (hex) over paths and texts, whatever their order."""
    digest = hashlib.sha256()
    for path, text in sorted(files.items()):
        for part in (path, text):
            data = part.encode()
            digest.update(len(data).to_bytes(8, "big"))
            digest.update(data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Rendered:
    """What should be: relative path to text."""

    files: Mapping[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", _frozen(self.files))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all files; the data version of the platform asset."""
        return files_digest(self.files)


@dataclass(frozen=True)
class Observed:
    """What is. `files` has the paths of `Rendered`, as far as they could be read back; `digest` may be known alone."""

    state: State
    reason: str
    digest: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", _frozen(self.files))
        object.__setattr__(self, "attributes", _frozen(self.attributes))
        if self.digest is None and self.files:
            object.__setattr__(self, "digest", files_digest(self.files))

    @classmethod
    def unknown(cls, reason: str) -> Observed:
        """Nothing could be read, and why."""
        return cls("unknown", reason)


@dataclass(frozen=True)
class Change:
    """One file's way from what is to what should be; `diff` is unified and empty when there is none."""

    action: Action
    target: str
    diff: str = ""


@dataclass(frozen=True)
class Plan:
    """What would be done to one entry. Data only: a plan can be printed, stored and compared."""

    kind: str
    name: str
    changes: tuple[Change, ...]
    observed: Observed

    @property
    def empty(self) -> bool:
        """Whether nothing is to do."""
        return all(change.action == "none" for change in self.changes)

    def counts(self) -> dict[Action, int]:
        """How many changes of each action, unchanged ones included."""
        counted = Counter(change.action for change in self.changes)
        order: tuple[Action, ...] = ("create", "update", "delete", "none")
        return {action: counted[action] for action in order}

    def summary(self) -> str:
        """One line: what is to do, and what is not known."""
        counts = self.counts()
        words: dict[Action, str] = {"create": "to create", "update": "to update", "delete": "to delete"}
        parts = [f"{counts[action]} {word}" for action, word in words.items() if counts[action]]
        text = f"{self.kind}/{self.name}: {', '.join(parts) or 'nothing to do'}"
        return f"{text} (not observed: {self.observed.reason})" if self.observed.state == "unknown" else text

    def diff(self) -> str:
        """The unified diffs of all changes, one after the other."""
        return "".join(change.diff for change in self.changes)


@dataclass(frozen=True)
class Finding:
    """One thing that `verify` saw. An error must not be deployed; info says what was not looked at."""

    severity: Severity
    rule: str
    where: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.severity} {self.rule} {self.where}: {self.message}"
        return f"{text}; {self.fix}" if self.fix else text


class Reconciler(Protocol[EntryT]):
    """One kind of the platform. The kind's entries come from the catalog it was built with."""

    @property
    def kind(self) -> str:
        """Name of the kind, as in the catalog."""
        ...

    def entries(self) -> tuple[EntryT, ...]:
        """The entries of this kind."""
        ...

    def render(self, entry: EntryT) -> Rendered:
        """What should be; pure."""
        ...

    def observe(self, entry: EntryT) -> Observed:
        """What is; `unknown` with the reason when it cannot be read, never an exception for that."""
        ...

    def plan(self, entry: EntryT) -> Plan:
        """The difference between the two."""
        ...

    def verify(self, entry: EntryT) -> tuple[Finding, ...]:
        """Checks of what `render` gives, without any outside system."""
        ...


def make_plan(kind: str, name: str, rendered: Rendered, observed: Observed) -> Plan:
    """The changes from `observed` to `rendered`, by path; pure."""
    if observed.state == "present" and observed.digest == rendered.digest:
        changes = [Change("none", path) for path in rendered.files]
    else:
        changes = [
            _change(path, observed.files.get(path), rendered.files.get(path), observed)
            for path in sorted({*rendered.files, *observed.files})
        ]
    return Plan(kind, name, tuple(changes), observed)


def _change(path: str, before: str | None, after: str | None, observed: Observed) -> Change:
    if before == after:
        return Change("none", path)
    action: Action = "update"
    if after is None:
        action = "delete"
    elif before is None and (observed.state != "present" or observed.files):
        # Present without files: only a digest was read, so the file is there in another form.
        action = "create"
    return Change(action, path, unified_diff(path, before or "", after or ""))


def unified_diff(path: str, before: str, after: str) -> str:
    """A unified diff of two texts, as `diff -u` and patch viewers want it."""
    lines = difflib.unified_diff(
        before.splitlines(),
        after.splitlines(),
        fromfile=f"a/{path}" if before else "/dev/null",
        tofile=f"b/{path}" if after else "/dev/null",
        lineterm="",
    )
    return "".join(f"{line}\n" for line in lines)


def has_errors(findings: tuple[Finding, ...]) -> bool:
    """Whether any finding forbids a deployment."""
    return any(finding.severity == "error" for finding in findings)
