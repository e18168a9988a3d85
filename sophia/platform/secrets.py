"""Secrets as a contract of names: which variable, how it is replaced, who reads it, whether it is set.

No value is ever taken further than one comparison with its pattern; what leaves this module is a word
(`set`, `missing`, `malformed`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from sophia.catalog.models import Catalog, Secret
from sophia.platform.exposure import exposures
from sophia.platform.reconcile import Finding, Observed, Plan, Rendered, make_plan
from sophia.platform.systems import PlatformSystems
from sophia.platform.text import to_yaml

Status = Literal["set", "missing", "malformed"]

# Two underlines stand between a group of settings and a field of it.
NAME_FORM = re.compile(r"^SOPHIA_[A-Z0-9]+(__?[A-Z0-9]+)*$")
LONGEST_ROTATION_DAYS = 90
LONGEST_CREDENTIAL_DAYS = 30


def status_of(secret: Secret, environ: Mapping[str, str]) -> Status:
    """Whether the environment has a usable value of the secret."""
    value = environ.get(secret.env, "")
    if not value:
        return "missing"
    if len(value) < secret.min_length or (secret.pattern is not None and not re.search(secret.pattern, value)):
        return "malformed"
    return "set"


@dataclass(frozen=True)
class SecretReconciler:
    """Secrets of the catalog, compared with the variables of one environment."""

    catalog: Catalog
    systems: PlatformSystems
    kind: str = "secrets"

    def entries(self) -> tuple[Secret, ...]:
        """All secrets, in the order of the catalog."""
        return self.catalog.secrets

    def render(self, entry: Secret) -> Rendered:
        """The contract, with the status that is wanted."""
        return Rendered({_path(entry): self._contract(entry, "set")})

    def observe(self, entry: Secret) -> Observed:
        """The contract, with the status that the environment has."""
        if self.systems.environ is None:
            return Observed.unknown("no environment was given to look at")
        status = status_of(entry, self.systems.environ)
        reason = f"{entry.env} is {status}"
        attributes = {"status": status, "variable": entry.env}
        if status == "missing" and not entry.required:
            # Nothing to do: nobody waits for it. The status still says that it is not there.
            return Observed("present", f"{reason}, and optional", files=self.render(entry).files, attributes=attributes)
        files = {_path(entry): self._contract(entry, status)}
        return Observed("absent" if status == "missing" else "present", reason, files=files, attributes=attributes)

    def plan(self, entry: Secret) -> Plan:
        """What a person or the synchronisation would have to do; never with a value."""
        return make_plan(self.kind, entry.name, self.render(entry), self.observe(entry))

    def verify(self, entry: Secret) -> tuple[Finding, ...]:
        """Names, rotation, pattern, readers, and that no value is anywhere."""
        return tuple(self._findings(entry))

    def _contract(self, entry: Secret, status: Status) -> str:
        return to_yaml(
            {
                "consumers": sorted(consumer.name for consumer in self.catalog.consumers_of(entry.name)),
                "environments": list(entry.environments),
                "providers": list(entry.providers),
                "required": entry.required,
                "rotation": {"class": entry.rotation, "everyDays": entry.rotation_days},
                "secret": entry.name,
                "status": status,
                "variable": entry.env,
            }
        )

    def _findings(self, entry: Secret) -> Iterator[Finding]:
        where = f"secrets/{entry.name}"
        yield from exposures(self.render(entry))
        if not NAME_FORM.match(entry.env):
            yield Finding(
                "error",
                "variable-name",
                where,
                f"{entry.env} breaks the naming convention",
                "use SOPHIA_WORDS_LIKE_THIS",
            )
        elif entry.env.replace("__", "_") != f"SOPHIA_{entry.name.upper()}":
            message = f"{entry.env} is not the variable of {entry.name}"
            yield Finding("error", "variable-name", where, message, f"use SOPHIA_{entry.name.upper()}")
        days = entry.rotation_days
        longest = LONGEST_CREDENTIAL_DAYS if entry.rotation == "credential-30" else LONGEST_ROTATION_DAYS
        if days > longest:
            yield Finding("error", "rotation", where, f"{entry.rotation} is every {days} days, longer than {longest}")
        if entry.rotation == "manual":
            yield Finding("info", "rotation", where, f"is replaced by hand, due every {days} days", "see the runbook")
        if entry.pattern is not None:
            try:
                re.compile(entry.pattern)
            except re.error as invalid:
                yield Finding("error", "pattern", where, f"its pattern is no regular expression: {invalid}")


def _path(entry: Secret) -> str:
    return f"secrets/{entry.name}.yaml"
