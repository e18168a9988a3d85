"""The questions that Sophia asks of Estuary's GraphQL, and the shapes of the answers.

Only what is named here is asked for: an alert's arguments hold e-mail addresses of its recipients and a publication
holds its author, and neither leaves this module. Estuary's own texts are cut to one line without such addresses.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AliasPath, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic.alias_generators import to_camel

# Estuary's API ignores `first` where no cursor is given and pages alerts backwards, the newest first; the next page is
# what lies before the last edge.
ALERTS = """
query ActiveAlerts($prefix: String!, $last: Int!, $before: String) {
  alerts(by: {prefix: $prefix, active: true}, last: $last, before: $before) {
    edges { cursor node { alertType catalogName firedAt arguments } }
    pageInfo { hasPreviousPage }
  }
}
"""
LIVE_SPECS = """
query LiveSpecs($prefix: Prefix!, $first: Int!, $after: String) {
  liveSpecs(by: {prefix: $prefix}, first: $first, after: $after) {
    edges {
      cursor
      node {
        catalogName
        lastPublication { publicationId publishedAt }
        status { type summary controller { inferredSchema { schemaMd5 } } }
        liveSpec {
          catalogType
          isDisabled
          lastPubId
          writtenBy(first: 50) { edges { node { catalogName } } }
          readBy(first: 50) { edges { node { catalogName } } }
        }
      }
    }
    pageInfo { hasNextPage }
  }
}
"""
MODELS = """
query Models($prefix: Prefix!, $first: Int!, $after: String) {
  liveSpecs(by: {prefix: $prefix}, first: $first, after: $after) {
    edges { cursor node { catalogName liveSpec { catalogType model } } }
    pageInfo { hasNextPage }
  }
}
"""
LONGEST_TEXT = 500
_EMAIL = re.compile(r"[^\s@<>\"'(),;:]+@[^\s@<>\"'(),;:/]+")
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]+@|\beyJ[\w.-]{20,}|(?i:bearer)\s+\S+")

# What may go into a header or an address.
_PRINTABLE = r"^[\x21-\x7e]*$"

CatalogType = Literal["capture", "collection", "materialization", "test"]
Health = Literal["OK", "WARNING", "ERROR", "TASK_DISABLED", "UNKNOWN"]


def plain(text: object) -> str:
    """Estuary's text on one line of at most 500 characters, without e-mail addresses and credentials."""
    line = " ".join(str(text).split())
    line = _EMAIL.sub("…", _CREDENTIALS.sub("…", line))
    return line if len(line) <= LONGEST_TEXT else line[: LONGEST_TEXT - 1] + "…"


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Alert(_Shape):
    """An alert that fires now. `text` is Estuary's own, `name` the task, collection or tenant that it is about."""

    type: str = Field(validation_alias="alertType")
    name: str = Field(validation_alias="catalogName")
    fired_at: datetime
    text: str = Field(default="", validation_alias="arguments")

    @field_validator("text", mode="before")
    @classmethod
    def _own_words(cls, arguments: Any) -> str:
        return plain(arguments.get("error") or "") if isinstance(arguments, dict) else ""


def _names(connection: Any) -> Any:
    """The names of a connection's nodes; Estuary gives null for one without any."""
    if connection is None:
        return ()
    return tuple(edge["node"]["catalogName"] for edge in connection["edges"])


_Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


def _health(kind: Any) -> Any:
    return kind if kind in ("OK", "WARNING", "ERROR", "TASK_DISABLED") else "UNKNOWN"


class LiveSpec(_Shape):
    """A published capture, collection, materialization or test, with its state.

    Attributes:
        health, summary: Estuary's judgement and words; the words of a healthy task are its connector's.
        publication: id of the last publication that changed it, and `published_at`.
        schema_hash: MD5 of the schema that Estuary inferred, if it does.
        written_by, read_by: of a collection: the tasks that write and read it.
    """

    name: str = Field(validation_alias="catalogName")
    kind: CatalogType = Field(validation_alias=AliasPath("liveSpec", "catalogType"))
    disabled: bool = Field(default=False, validation_alias=AliasPath("liveSpec", "isDisabled"))
    publication: str = Field(validation_alias=AliasPath("liveSpec", "lastPubId"))
    published_at: datetime | None = Field(default=None, validation_alias=AliasPath("lastPublication", "publishedAt"))
    health: Annotated[Health, BeforeValidator(_health)] = Field(
        default="UNKNOWN", validation_alias=AliasPath("status", "type")
    )
    summary: Annotated[str, BeforeValidator(plain)] = Field(default="", validation_alias=AliasPath("status", "summary"))
    schema_hash: str | None = Field(
        default=None, validation_alias=AliasPath("status", "controller", "inferredSchema", "schemaMd5")
    )
    written_by: _Names = Field(default=(), validation_alias=AliasPath("liveSpec", "writtenBy"))
    read_by: _Names = Field(default=(), validation_alias=AliasPath("liveSpec", "readBy"))


class TaskStatus(BaseModel):
    """One entry of `GET /api/v1/catalog/status`; this endpoint writes its fields in snake case."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(validation_alias="catalog_name")
    kind: CatalogType | None = Field(default=None, validation_alias="spec_type")
    disabled: bool = False
    health: str = Field(default="", validation_alias=AliasPath("summary", "status"))
    message: Annotated[str, BeforeValidator(plain)] = Field(
        default="", validation_alias=AliasPath("summary", "message")
    )
    publication: str = Field(validation_alias="last_pub_id")
    updated_at: datetime = Field(validation_alias="live_spec_updated_at")
    next_run: datetime | None = Field(default=None, validation_alias="controller_next_run")
    error: str | None = Field(default=None, validation_alias="controller_error")
    failures: int = Field(default=0, validation_alias="controller_failures")

    @field_validator("error", mode="before")
    @classmethod
    def _own_words(cls, value: Any) -> Any:
        return None if value is None else plain(value)


class Authorization(BaseModel):
    """What reads the journals of a collection: where, by which token, and what their names begin with.

    `retry_millis` other than 0: there is no answer yet; ask again after so long.
    """

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, hide_input_in_errors=True)

    broker_address: str = Field("", pattern=_PRINTABLE)
    broker_token: str = Field("", pattern=_PRINTABLE, repr=False)
    journal_name_prefix: str = ""
    retry_millis: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _whole(self) -> Authorization:
        if not self.retry_millis and not (self.broker_address and self.broker_token and self.journal_name_prefix):
            raise ValueError("an authorization without address, token or prefix")
        return self
