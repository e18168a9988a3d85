"""Settings: defaults as promised, all faults at once, no secret in any text."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from sophia.errors import ConfigurationError, SettingsError
from sophia.settings import Settings, known_variables, load_settings

DEFAULTS = {
    "profile": "local",
    "catalog": None,
    "database_url": None,
    "hub": False,
    "device": None,
    "image": None,
    "code_version": None,
    "docker_host": None,
    "kube_context": None,
    "n8n_url": None,
    "n8n_api_key": None,
    "vercel_token": None,
    "app_database_url": None,
    "dagster_postgres_url": None,
    "snowflake_url": None,
    "snowflake_private_key": None,
    "snowflake": {"batch_documents": 2000, "login_seconds": 30, "statement_seconds": 1800},
    "weaviate_url": None,
    "weaviate_grpc_url": None,
    "weaviate_api_key": None,
    "pinecone_api_key": None,
    "pinecone_url": "https://api.pinecone.io",
    "pinecone": {
        "cloud": None,
        "region": None,
        "write_seconds": 30.0,
        "read_seconds": 10.0,
        "fresh_seconds": 30.0,
        "settle_seconds": 10.0,
    },
    "embedding_api_key": None,
    "capture": {
        "batch_documents": 2000,
        "batch_bytes": 8_000_000,
        "bulk_transaction": 1000,
        "status_seconds": 5.0,
        "catalog_check_seconds": 10.0,
        "metrics_port": 0,
        "metrics_host": "127.0.0.1",
    },
    "indexer": {
        "live_documents": 512,
        "bulk_documents": 2000,
        "beside_tokens": 96,
        "lease_seconds": 10.0,
        "poll_seconds": 1.0,
        "scan_hours": 24.0,
        "max_text_bytes": 1_000_000,
        "metrics_port": 0,
        "metrics_host": "127.0.0.1",
    },
    "console": {"host": "127.0.0.1", "port": 8010},
    "weaviate": {"write_seconds": 30.0, "read_seconds": 10.0, "batch_objects": 200, "requests": 2},
    "embedding": {"backend": "auto", "threads": None, "budget_tokens": None, "cache": "none", "redis_url": None},
    "flowctl": {"program": "flowctl", "timeout_seconds": 600.0, "data_plane": None},
    "estuary": {
        "url": "https://api.estuary.dev",
        "token": None,
        "prefix": None,
        "timeout_seconds": 10.0,
        "max_response_bytes": 16_000_000,
    },
    "intake": {
        "host": "127.0.0.1",
        "port": 8200,
        "tokens": None,
        "max_request_bytes": 17 * 1024 * 1024,
        "memory_bytes": 34 * 1024 * 1024,
        "receive_seconds": 60.0,
        "retry_seconds": 15.0,
        "writers": 2,
        "drain_seconds": 20.0,
    },
    "inference": {
        "host": "127.0.0.1",
        "port": 8100,
        "model": "minilm",
        "precision": "exact",
        "tokens": None,
        "max_request_bytes": 4_000_000,
        "max_texts": 2_048,
        "max_text_chars": 100_000,
        "online_tokens": 16_384,
        "bulk_tokens": 262_144,
        "timeout_seconds": 30.0,
        "drain_seconds": 20.0,
        "result_days": 1,
        "sentiment_model": None,
        "summary_model": None,
        "generate_url": None,
        "generate_model": None,
        "generate_key": None,
    },
}


def test_defaults_are_pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever changes a default changes it here too, on purpose."""
    monkeypatch.chdir(tmp_path)
    found = load_settings().model_dump()
    assert found.pop("home") == tmp_path / ".sophia"
    assert found == DEFAULTS


def test_every_field_has_a_description() -> None:
    assert all(known_variables().values())
    assert "SOPHIA_CAPTURE__BATCH_DOCUMENTS" in known_variables()


def test_environment_is_read_with_prefix_and_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOPHIA_DEVICE", "cpu")
    monkeypatch.setenv("SOPHIA_CAPTURE__BATCH_DOCUMENTS", "7")
    settings = load_settings()
    assert (settings.device, settings.capture.batch_documents) == ("cpu", 7)
    assert settings.capture.bulk_transaction == 1000


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOPHIA_DATABASE_URL", "")
    assert load_settings().database_url is None


def test_every_fault_is_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOPHIA_PROFILE", "moon")
    monkeypatch.setenv("SOPHIA_CAPTURE__BATCH_DOCUMENTS", "none")
    monkeypatch.setenv("SOPHIA_INDEXER__LEASE_SECONDS", "0")
    monkeypatch.setenv("SOPHIA_CONSOLE__PORT", "70000")
    monkeypatch.setenv("SOPHIA_DATABASE_URL", "mysql://user:hunter2@host/db")
    monkeypatch.setenv("SOPHIA_DEVISE", "cpu")
    with pytest.raises(SettingsError) as error:
        load_settings()
    message = str(error.value)
    for name in (
        "SOPHIA_PROFILE",
        "SOPHIA_CAPTURE__BATCH_DOCUMENTS",
        "SOPHIA_INDEXER__LEASE_SECONDS",
        "SOPHIA_CONSOLE__PORT",
        "SOPHIA_DATABASE_URL",
        "SOPHIA_DEVISE",
    ):
        assert name in message
    assert "hunter2" not in message
    assert isinstance(error.value, ConfigurationError)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("SOPHIA_DATABSE_URL", "SOPHIA_DATABASE_URL"),
        ("SOPHIA_CAPTURE__BATCH_DOCUMENT", "SOPHIA_CAPTURE__BATCH_DOCUMENTS"),
        ("SOPHIA_CAPTURE_BATCH_DOCUMENTS", "SOPHIA_CAPTURE__BATCH_DOCUMENTS"),
    ],
)
def test_misspelt_variable_is_named_with_a_suggestion(
    monkeypatch: pytest.MonkeyPatch, written: str, meant: str
) -> None:
    monkeypatch.setenv(written, "1")
    with pytest.raises(SettingsError, match=f"{written}: is not a setting; did you mean {meant}"):
        load_settings()


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_times_are_finite_and_not_negative(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SOPHIA_INDEXER__SCAN_HOURS", value)
    monkeypatch.setenv("SOPHIA_CAPTURE__STATUS_SECONDS", value)
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert "SOPHIA_INDEXER__SCAN_HOURS" in str(error.value)
    assert "SOPHIA_CAPTURE__STATUS_SECONDS" in str(error.value)


def test_a_variable_that_the_catalog_names_is_no_misspelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOPHIA_SNOWFLAKE_URL", "snowflake://x")
    assert load_settings().secret("SOPHIA_SNOWFLAKE_URL") == "snowflake://x"


def test_secrets_show_in_no_text() -> None:
    secret = "postgresql://user:hunter2@host/db"
    settings = load_settings(database_url=secret, pinecone_api_key="hunter2", app_database_url=secret)
    texts = [repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()]
    assert not [text for text in texts if "hunter2" in text]
    assert settings.secret("SOPHIA_DATABASE_URL") == secret


def test_every_field_that_sounds_secret_is_masked() -> None:
    for name, field in Settings.model_fields.items():
        if name.endswith(("_key", "_token", "_password")) or "database_url" in name:
            assert SecretStr in getattr(field.annotation, "__args__", ()), name


def test_malformed_secret_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOPHIA_APP_DATABASE_URL", "hunter2")
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert "SOPHIA_APP_DATABASE_URL: must start with postgresql://" in str(error.value)
    assert "hunter2" not in f"{error.value!r} {error.value.__cause__!r} {error.value.__context__!r}"


def test_cluster_profile_names_what_it_needs() -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(profile="cluster")
    for name in ("SOPHIA_DATABASE_URL", "SOPHIA_KUBE_CONTEXT", "SOPHIA_WEAVIATE_URL"):
        assert f"{name}: is required in the cluster profile" in str(error.value)


def test_settings_are_frozen() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError):
        settings.profile = "cluster"  # type: ignore[misc]


def test_home_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOPHIA_HOME", "here")
    settings = load_settings()
    assert settings.home == tmp_path / "here"
    assert settings.pgdata.is_relative_to(settings.home)
