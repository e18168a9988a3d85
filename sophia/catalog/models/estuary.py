"""What Estuary runs for the platform: captures, and the tasks that bring collections to us.

Addresses, users and secrets are names of variables. A tree of its own is rendered for each environment, below that
environment's prefix; names in the catalog are those of production.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sophia.catalog.models.base import Entry, Environment, EnvName, Frozen, Owner

CaptureConnector = Literal["source-postgres", "source-snowflake"]
CatalogPrefix = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$")]
"""A prefix of Estuary's catalog, without a slash at its end."""

TaskName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=63)]
"""The last part of a task's name in Estuary."""

_QUALIFIED = r"^[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_][A-Za-z0-9_]*$"


class EstuaryPrefixes(Frozen):
    """Where each environment's tree lives in Estuary's catalog."""

    development: CatalogPrefix = Field(default="sophia/development", description="Prefix of development.")
    staging: CatalogPrefix = Field(default="sophia/staging", description="Prefix of staging.")
    production: CatalogPrefix = Field(
        default="sophia", description="Prefix of production; what the collections' names begin with."
    )

    @model_validator(mode="after")
    def _apart(self) -> EstuaryPrefixes:
        if len({self.development, self.staging, self.production}) < 3:
            raise ValueError("two environments share a prefix")
        return self

    def of(self, environment: Environment) -> str:
        """The prefix of an environment."""
        return {"development": self.development, "staging": self.staging, "production": self.production}[environment]


class EstuaryWebhook(Frozen):
    """A materialisation into our intake. One has one token; its collections wait for each other."""

    name: TaskName = Field(default="webhook", description="Last part of its name.")
    token: str = Field(default="estuary_webhook_token", description="Secret that the intake knows it by.")
    collections: tuple[str, ...] = Field(
        default=(), description="Collections it brings; empty: those that no other webhook names."
    )


class EstuaryStaging(Frozen):
    """A materialisation into tables of a PostgreSQL that Estuary can reach."""

    name: TaskName = Field(default="staging", description="Last part of its name.")
    variables: EnvName = Field(description="What its variables begin with: _ADDRESS, _USER and _DATABASE follow.")
    secret: str = Field(description="Secret with the password of its role.")
    namespace: str = Field(
        default="estuary", pattern=r"^[a-z_][a-z0-9_]*$", description="Schema that its tables are made in."
    )
    hard_delete: bool = Field(default=True, description="Whether a deleted row leaves the table.")
    collections: tuple[str, ...] = Field(min_length=1, description="Collections it brings.")


class Estuary(Frozen):
    """The part of Estuary's catalog that is not a capture."""

    prefixes: EstuaryPrefixes = Field(default_factory=EstuaryPrefixes, description="Prefix of each environment.")
    intake: EnvName = Field(
        default="SOPHIA_ESTUARY_INTAKE_URL",
        description="Variable with the intake's public base URL, without a slash at its end.",
    )
    webhooks: tuple[EstuaryWebhook, ...] = Field(
        default=(EstuaryWebhook(),), min_length=1, description="Materialisations into our intake."
    )
    staging: EstuaryStaging | None = Field(default=None, description="Tables beside the intake; null: none.")

    @model_validator(mode="after")
    def _distinct(self) -> Estuary:
        names = [webhook.name for webhook in self.webhooks] + ([self.staging.name] if self.staging else [])
        if len(set(names)) != len(names):
            raise ValueError("two materialisations have one name")
        named = [collection for webhook in self.webhooks for collection in webhook.collections]
        if len(set(named)) != len(named):
            raise ValueError("a collection is brought by two webhooks")
        if sum(not webhook.collections for webhook in self.webhooks) > 1:
            raise ValueError("only one webhook may bring the collections that no other names")
        return self


class EstuaryBinding(Frozen):
    """One table that a capture writes into a collection."""

    collection: str = Field(description="Name of the collection.")
    table: str | None = Field(
        default=None, pattern=_QUALIFIED, description="schema.table there; null: the collection's table."
    )


class EstuaryCapture(Entry):
    """One of Estuary's captures."""

    owners: tuple[Owner, ...] = Field(
        default=("team:data",), min_length=1, description="Who answers for it: team:x or e-mail."
    )
    connector: CaptureConnector = Field(description="Estuary's connector.")
    variant: (
        Literal[
            "source-alloydb",
            "source-amazon-aurora-postgres",
            "source-amazon-rds-postgres",
            "source-google-cloud-sql-postgres",
            "source-neon-postgres",
            "source-supabase-postgres",
        ]
        | None
    ) = Field(default=None, description="Variant of source-postgres for a hosted server; null: the plain one.")
    variables: EnvName = Field(
        description="What its variables begin with: _ADDRESS, _USER, _DATABASE (PostgreSQL) or _HOST, _USER, "
        "_DATABASE, _WAREHOUSE, _ROLE (Snowflake) follow."
    )
    secret: str = Field(description="Secret with its password (PostgreSQL) or private key (Snowflake).")
    bindings: tuple[EstuaryBinding, ...] = Field(min_length=1, description="Tables that it captures.")
    history: bool = Field(
        default=False, description="Whether every change is kept as its own document (source-postgres)."
    )
    publication: str = Field(default="flow_publication", description="PostgreSQL publication that it reads.")
    slot: str = Field(default="flow_slot", description="PostgreSQL replication slot of its own.")
    watermarks: str = Field(
        default="public.flow_watermarks", pattern=_QUALIFIED, description="Table that its backfills write to."
    )
    interval: str = Field(
        default="5m", pattern=r"^[0-9]+(s|m|h)$", description="Time between two polls (source-snowflake)."
    )

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets that it gets."""
        return (self.secret,)

    @model_validator(mode="after")
    def _consistent(self) -> EstuaryCapture:
        names = [binding.collection for binding in self.bindings]
        if len(set(names)) != len(names):
            raise ValueError("bindings name a collection twice")
        if self.connector == "source-snowflake" and (self.history or self.variant):
            raise ValueError("history and variant go with source-postgres")
        return self
