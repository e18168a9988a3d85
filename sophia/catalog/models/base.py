"""What every catalog entry shares: frozen, nothing unknown accepted, a name, a description, owners.

Profiles: a value may differ between `local` and `cluster` (`PerProfile`); `None` in a profile means
that the entry is only planned there, never run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Profile = Literal["local", "cluster"]
Environment = Literal["development", "staging", "production"]
Architecture = Literal["amd64", "arm64"]

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=63)]
"""A name in snake case, as Dagster and Python want it."""

DashedName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=63)]
"""A name as hosts, images and Kubernetes objects want it (RFC 1123)."""

Owner = Annotated[str, Field(pattern=r"^(team:[a-z][a-z0-9_-]*|[^@\s:]+@[^@\s]+\.[a-z]+)$")]
"""`team:x` or an e-mail address, the two forms that Dagster accepts."""

EnvName = Annotated[str, Field(pattern=r"^SOPHIA_[A-Z][A-Z0-9_]*$")]
"""Our own environment variables: one prefix, so that all of them can be validated together."""

Port = Annotated[int, Field(ge=1, le=65535)]
Cron = Annotated[str, Field(pattern=r"^\S+( \S+){4}$")]
"""A cron expression of five fields, in UTC."""

Column = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Frozen(BaseModel):
    """Immutable, closed to unknown fields; the base of every part of the catalog."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Entry(Frozen):
    """One named entry of a catalog file."""

    name: Name = Field(description="Unique within its kind.")
    description: str = Field(min_length=1, description="What it is, in one sentence.")
    owners: tuple[Owner, ...] = Field(
        default=("team:platform",), min_length=1, description="Who answers for it: team:x or e-mail."
    )


class PerProfile(Frozen):
    """A value for each profile; YAML gives either one string for both or a mapping."""

    local: str | None = Field(default=None, description="Value in the local profile; null: plan only.")
    cluster: str | None = Field(default=None, description="Value in the cluster profile; null: plan only.")

    @model_validator(mode="before")
    @classmethod
    def _one_for_both(cls, value: Any) -> Any:
        return {"local": value, "cluster": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _used_somewhere(self) -> PerProfile:
        if self.local is None and self.cluster is None:
            raise ValueError("needs a value in at least one profile")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        mapping = handler(schema)
        string = {
            **mapping["properties"]["cluster"]["anyOf"][0],
            "description": "The value in both profiles.",
        }
        return {"anyOf": [string, mapping]}

    def for_profile(self, profile: Profile) -> str | None:
        """The value in `profile`; None when the entry is only planned there."""
        return self.local if profile == "local" else self.cluster
