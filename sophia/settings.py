"""Every environment variable that Sophia reads, typed, with unit and reason, checked together.

Read once at the edge (`load_settings()`), never at import, and handed on as a frozen value. All faults are
named in one message; secrets are masked by their type, so no log line or repr can show one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from sophia.errors import SettingsError

PREFIX = "SOPHIA_"
Profile = Literal["local", "cluster"]
# Where a token may go without TLS.
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _MeteredGroup(_Group):
    """A process without a web page that may serve /metrics, /health and /ready all the same."""

    metrics_port: int = Field(0, ge=0, le=65535, description="Port of /metrics, /health and /ready; 0 for none.")
    metrics_host: str = Field("127.0.0.1", description="Address that they listen on.")


class CaptureSettings(_MeteredGroup):
    """The capture process: from the source's write-ahead log to the inbox."""

    batch_documents: int = Field(
        2_000, ge=1, description="Most documents of one inbox transaction. Bounds memory and lock time."
    )
    batch_bytes: int = Field(8_000_000, ge=1_000, description="Most bytes of WAL payload of one inbox transaction.")
    bulk_transaction: int = Field(
        1_000,
        ge=1,
        description="A source transaction with more changes than this takes the bulk lane, "
        "so that it cannot hold up single changes behind it.",
    )
    status_seconds: float = Field(
        5.0, gt=0, description="Longest time between two status messages to the source server."
    )
    catalog_check_seconds: float = Field(
        10.0, gt=0, description="How often publication and table identities are compared with the source."
    )


class IndexerSettings(_MeteredGroup):
    """The indexer process: from the inbox to the stores."""

    live_documents: int = Field(
        512, ge=1, description="Most documents of one live micro-batch; fewer if they take longer than 50 ms."
    )
    bulk_documents: int = Field(
        2_000, ge=1, description="Most documents of one bulk transaction; fewer while live changes come in."
    )
    beside_tokens: int = Field(
        96,
        ge=1,
        description="Most tokens (or one text) of a bulk forward pass while live changes come in: they wait for it.",
    )
    lease_seconds: float = Field(
        10.0, gt=0, description="How long a silent holder keeps an index before a standby takes over."
    )
    poll_seconds: float = Field(
        1.0, gt=0, description="Longest wait without a notification before the inbox is looked at anyway."
    )
    scan_hours: float = Field(
        24.0,
        ge=0,
        description="Time in which the deep scan reads a whole index once and repairs what was edited behind "
        "Sophia's back; 0 for no scan.",
    )
    max_text_bytes: int = Field(
        1_000_000, ge=1, description="A longer rendered text is parked: it is no text that people search."
    )


class EmbeddingSettings(_Group):
    """The embedding engine, in whatever process it runs."""

    backend: Literal["auto", "torch", "openvino"] = Field(
        "auto", description="What computes on a CPU: `auto` is OpenVINO where it is installed, else torch."
    )
    threads: int | None = Field(
        None, ge=1, description="Most CPU threads of a forward pass; the library's own if unset."
    )
    budget_tokens: int | None = Field(
        None, ge=16, description="Tokens of a forward pass; found by measuring when bulk work begins if unset."
    )
    cache: Literal["none", "postgres", "redis"] = Field(
        "none", description="Where vectors are kept by model and text, so that no text is computed twice."
    )
    redis_url: SecretStr | None = Field(
        None, description="Redis of the embedding cache and of computed results, as redis://host:port/number."
    )


class IntakeSettings(_Group):
    """The intake service: from Estuary's webhook to the inbox."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8200, ge=0, le=65535, description="Port to listen on.")
    tokens: SecretStr | None = Field(
        None,
        description="Bearer tokens as a JSON object: the full Estuary name of a collection, `/events` for commit "
        "events or `*` for all that are not named, to tokens separated by commas; several while one is rotated out.",
    )
    max_request_bytes: int = Field(
        17 * 1024 * 1024,
        ge=1_000,
        description="Largest request body; more is answered 413. Estuary sends 1 MiB and one document of up to 16 MB.",
    )
    memory_bytes: int = Field(
        34 * 1024 * 1024,
        ge=1_000,
        description="Bytes of request bodies in memory at once; further requests wait to be read.",
    )
    receive_seconds: float = Field(60.0, gt=0, description="Time in which a body must come; then 408.")
    retry_seconds: float = Field(
        15.0, ge=0, description="Time for which a request waits for the database to come back; then 503."
    )
    writers: int = Field(2, ge=1, le=64, description="Collections that are written at the same time.")
    drain_seconds: float = Field(20.0, ge=0, description="Time that running requests get to end after SIGTERM.")

    @model_validator(mode="after")
    def _room_for_one(self) -> IntakeSettings:
        if self.memory_bytes < self.max_request_bytes:
            raise ValueError("memory_bytes must be at least max_request_bytes: a request needs room")
        return self


class InferenceSettings(_Group):
    """The inference service."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8100, ge=0, le=65535, description="Port to listen on.")
    model: str = Field("minilm", description="Embedding model of the catalog that it serves.")
    precision: Literal["exact", "fast", "int8"] = Field("exact", description="Precision class of the served model.")
    tokens: SecretStr | None = Field(
        None, description="Bearer tokens of callers, separated by commas; several while one is rotated out."
    )
    max_request_bytes: int = Field(4_000_000, ge=1_000, description="Largest request body; more is answered 413.")
    max_texts: int = Field(2_048, ge=1, description="Most texts of a request; more is answered 422.")
    max_text_chars: int = Field(100_000, ge=1, description="Longest text of a request; more is answered 422.")
    online_tokens: int = Field(
        16_384, ge=1, description="Tokens that may wait in the online lane; beyond that callers get 429."
    )
    bulk_tokens: int = Field(
        262_144, ge=1, description="Tokens that may wait in the bulk lane; beyond that callers wait or get 429."
    )
    timeout_seconds: float = Field(30.0, gt=0, description="Longest time of a request without streaming; then 504.")
    drain_seconds: float = Field(20.0, ge=0, description="Time that running requests get to end after SIGTERM.")
    result_days: int = Field(
        1, ge=0, description="Days that results of /analyze, /classify and /summarize are kept in Redis; 0 for none."
    )
    sentiment_model: str | None = Field(
        None, description="Folder or hub name of a text-classification model for /analyze; a lexicon if unset."
    )
    summary_model: str | None = Field(
        None, description="Folder or hub name of a text model for abstractive /summarize; extractive if unset."
    )
    generate_url: str | None = Field(
        None, description="Base URL of an OpenAI-compatible server that /generate passes requests to."
    )
    generate_model: str | None = Field(
        None, description="Model name at generate_url; without a URL, folder or hub name of a local text model."
    )
    generate_key: SecretStr | None = Field(None, description="API key of generate_url.")


class EstuarySettings(_Group):
    """Estuary's control plane, as far as it is observed; what feeds the inbox is the intake."""

    url: str = Field(
        "https://api.estuary.dev", pattern=r"^https?://[^\s/]", description="Base URL of Estuary's control plane."
    )
    token: SecretStr | None = Field(
        None, description="Refresh token or API key that may read the prefix; nothing is asked of Estuary if unset."
    )
    prefix: str | None = Field(
        None,
        pattern=r"^([A-Za-z0-9_.-]+/)+$",
        description="Catalog prefix that is observed, with a final slash; unset: what the collections begin with.",
    )
    timeout_seconds: float = Field(
        10.0, gt=0, le=20, description="Longest time of one question to Estuary, with all its repetitions."
    )
    max_response_bytes: int = Field(
        16_000_000, ge=1_000, description="Largest answer that is read; a larger one is a fault, not memory."
    )

    @field_validator("url")
    @classmethod
    def _token_stays_secret(cls, value: str) -> str:
        if value.startswith("http://") and urlsplit(value).hostname not in LOOPBACK:
            raise ValueError("must be https: a token goes with every question")
        return value


class FlowctlSettings(_Group):
    """Estuary's own command, by which its catalog is published."""

    program: str = Field("flowctl", min_length=1, description="The command, by name or by path.")
    timeout_seconds: float = Field(
        600.0, gt=0, description="Longest time of one call; Estuary builds and tests everything that is published."
    )
    data_plane: str | None = Field(
        None, description="Data plane for new collections and tasks, as ops/dp/public/…; Estuary's default if unset."
    )


class WeaviateSettings(_Group):
    """How Weaviate is spoken to."""

    write_seconds: float = Field(
        30.0,
        ge=2,
        description="Longest time of writing a batch with all its repetitions. Leases outlive it, so that a shorter "
        "one makes a standby take over sooner.",
    )
    read_seconds: float = Field(10.0, gt=0, description="Longest time of a search, or of a page when much is read.")
    batch_objects: int = Field(200, ge=1, le=10_000, description="Objects of one request of a batch.")
    requests: int = Field(2, ge=1, le=64, description="Requests of a batch that are under way at the same time.")


class PineconeSettings(_Group):
    """Pinecone, for indexes that the catalog puts there."""

    cloud: Literal["aws", "gcp", "azure"] | None = Field(
        None, description="Cloud in which missing indexes are made; none is made if it or the region is unset."
    )
    region: str | None = Field(None, description="Region in which missing indexes are made, as us-east-1.")
    write_seconds: float = Field(
        30.0, gt=0, description="Longest time of a write, with all repetitions; a writer's lease outlives it."
    )
    read_seconds: float = Field(10.0, gt=0, description="Longest time of a question, with all repetitions.")
    fresh_seconds: float = Field(
        30.0, gt=0, description="How long a verification waits for Pinecone to show what was written before."
    )
    settle_seconds: float = Field(
        10.0, ge=0, description="What it waits where Pinecone does not say how far its index is."
    )


class SnowflakeSettings(_Group):
    """The capture of Snowflake sources; what is captured, and how, stands in the catalog."""

    batch_documents: int = Field(
        2_000, ge=1, description="Most rows of one inbox transaction, and of one fetch: bounds memory."
    )
    login_seconds: int = Field(30, ge=1, description="Longest time of a sign-in.")
    statement_seconds: int = Field(
        1_800, ge=1, description="Longest time of a statement, the resuming of its warehouse included."
    )


class ConsoleSettings(_Group):
    """The console's web server."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8010, ge=0, le=65535, description="Port to listen on.")


class Settings(BaseSettings):
    """Sophia's settings. Every field is the variable `SOPHIA_<FIELD>`; groups use `SOPHIA_<GROUP>__<FIELD>`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, extra="ignore", env_ignore_empty=True
    )

    profile: Profile = Field("local", description="`local` needs nothing; `cluster` speaks to real systems.")
    home: Path = Field(
        Path(".sophia"), description="Folder of all local state: embedded PostgreSQL, Dagster home, logs."
    )
    catalog: Path | None = Field(None, description="Catalog folder; the repository's deploy/catalog if unset.")
    database_url: SecretStr | None = Field(
        None, description="PostgreSQL >= 14 with pgvector >= 0.8. Unset: the embedded server under SOPHIA_HOME."
    )
    dagster_postgres_url: SecretStr | None = Field(
        None, description="Dagster's own storage; a database `dagster` beside Sophia's if unset."
    )
    hub: bool = Field(False, description="Allow model downloads from a hub. Off: only local and packaged models.")
    device: str | None = Field(None, description="Torch device of the embedder; chosen by torch if unset.")
    image: str | None = Field(None, description="Image that this process runs in, with its digest; for provenance.")
    code_version: str | None = Field(
        None, description="Version and commit of this code, for provenance; the installed package's if unset."
    )
    docker_host: str | None = Field(None, description="Docker engine for the image assets; plan only if unset.")
    kube_context: str | None = Field(None, description="Kubernetes context for the cluster; plan only if unset.")
    n8n_url: str | None = Field(None, description="n8n base URL for the workflows; plan only if unset.")
    n8n_api_key: SecretStr | None = Field(None, description="n8n API key.")
    vercel_token: SecretStr | None = Field(None, description="Vercel token for the frontends; plan only if unset.")
    app_database_url: SecretStr | None = Field(None, description="DSN of the catalog source `app`.")
    snowflake_url: SecretStr | None = Field(None, description="URL of the catalog source `snowflake`.")
    snowflake_private_key: SecretStr | None = Field(
        None, description="Private key of the catalog source `snowflake`: PKCS8 PEM, or the path of such a file."
    )
    weaviate_url: str | None = Field(
        None, pattern=r"^https?://[^\s/]+/?$", description="Weaviate base URL (cluster profile)."
    )
    weaviate_grpc_url: str | None = Field(
        None,
        pattern=r"^(\[[0-9A-Fa-f:]+\]|[^\s:/]+):\d{1,5}$",
        description="Weaviate's gRPC address as host:port; unset: port 50051 of the same host, and in Weaviate Cloud "
        "what belongs to the URL. It is encrypted if the URL is https.",
    )
    weaviate_api_key: SecretStr | None = Field(None, description="Weaviate API key.")
    pinecone_api_key: SecretStr | None = Field(None, description="Pinecone API key.")
    pinecone_url: str = Field(
        "https://api.pinecone.io",
        pattern=r"^https?://[^\s/]",
        description="Pinecone's control plane, which knows the addresses of the indexes.",
    )
    embedding_api_key: SecretStr | None = Field(None, description="Key of an OpenAI-compatible endpoint.")

    capture: CaptureSettings = CaptureSettings()
    indexer: IndexerSettings = IndexerSettings()
    console: ConsoleSettings = ConsoleSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    estuary: EstuarySettings = EstuarySettings()
    flowctl: FlowctlSettings = FlowctlSettings()
    inference: InferenceSettings = InferenceSettings()
    intake: IntakeSettings = IntakeSettings()
    snowflake: SnowflakeSettings = SnowflakeSettings()
    pinecone: PineconeSettings = PineconeSettings()
    weaviate: WeaviateSettings = WeaviateSettings()

    @field_validator("home", "catalog")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @field_validator("database_url", "app_database_url", "dagster_postgres_url")
    @classmethod
    def _postgres_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("must start with postgresql://")
        return value

    @cached_property
    def pgdata(self) -> Path:
        """Data folder of the embedded PostgreSQL."""
        return self.home / "postgres"

    @cached_property
    def dagster_home(self) -> Path:
        """DAGSTER_HOME of the local profile."""
        return self.home / "dagster"

    def secret(self, variable: str) -> str | None:
        """The value of a variable that the catalog names (`SOPHIA_APP_DATABASE_URL`), or None if unset.

        A field of this model is read from it, any other variable from the environment.
        """
        field = variable.removeprefix(PREFIX).lower()
        if field not in type(self).model_fields:
            return os.environ.get(variable) or None
        value = getattr(self, field)
        return value.get_secret_value() if isinstance(value, SecretStr) else value

    def missing(self) -> list[str]:
        """Variables that the cluster profile needs and that are not set."""
        if self.profile == "local":
            return []
        return [
            PREFIX + name.upper()
            for name in ("database_url", "kube_context", "weaviate_url")
            if not getattr(self, name)
        ]


def known_variables() -> dict[str, str]:
    """Every variable with its description, in the order of the model."""
    known: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, _Group):
            for sub, subfield in group.model_fields.items():
                known[f"{PREFIX}{name}__{sub}".upper()] = subfield.description or ""
        else:
            known[f"{PREFIX}{name}".upper()] = field.description or ""
    return known


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read and check all settings at once.

    `environ` is where unknown `SOPHIA_` names are looked for (the process environment by default);
    `overrides` win over the environment (tests, command-line options).

    Raises:
        SettingsError: naming every missing, malformed or misspelt variable, without any value.
    """
    faults: list[str] = []
    settings: Settings | None = None
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        for fault in error.errors():
            variable = PREFIX + "__".join(str(part) for part in fault["loc"]).upper()
            faults.append(f"{variable}: {fault['msg'].removeprefix('Value error, ')}")
    if settings is not None:
        faults += [f"{name}: is required in the cluster profile" for name in settings.missing()]
    known = known_variables()
    for name in sorted(os.environ if environ is None else environ):
        # Names that the catalog or the tests own are no settings of ours.
        if name.startswith(PREFIX) and name not in known and not name.startswith(f"{PREFIX}TEST_"):
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
            if close:
                faults.append(f"{name}: is not a setting; did you mean {close[0]}?")
    if faults or settings is None:
        raise SettingsError("settings are not usable:\n" + "\n".join(f"  {fault}" for fault in faults))
    return settings
