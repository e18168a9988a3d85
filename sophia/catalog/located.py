"""An entry together with the place in its file, so that any later finding can point there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from sophia.catalog.errors import Code, Problem
from sophia.catalog.kinds import Section
from sophia.catalog.models import Frozen
from sophia.catalog.yaml_source import Loc, child, line_at


@dataclass(frozen=True, slots=True)
class Located:
    """One entry as read; `entry` is None when it did not validate."""

    section: Section
    path: str
    node: yaml.Node
    data: dict[str, Any]
    defaults: yaml.Node | None = None
    entry: Frozen | None = None

    @property
    def name(self) -> str | None:
        """The name as written, valid or not; None for a nameless entry."""
        name = self.data.get("name")
        return name if self.section.many and isinstance(name, str) else None

    def line(self, loc: Loc = ()) -> int:
        """The line of the field, in the file's defaults when it comes from there."""
        inherited = self.defaults is not None and bool(loc) and child(self.node, loc[0]) is None
        if inherited and self.defaults is not None and child(self.defaults, loc[0]) is not None:
            return line_at(self.defaults, loc)
        return line_at(self.node, loc)

    def problem(self, code: Code, message: str, loc: Loc = ()) -> Problem:
        """A problem of this entry, at the field."""
        return Problem(self.path, self.line(loc), code, message, self.section.kind, self.name)
