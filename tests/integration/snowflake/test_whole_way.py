"""From a row in Snowflake to search, by the command and the catalog."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from sophia.capture.snowflake import snowflake_sources
from sophia.catalog import Catalog, load
from sophia.catalog.loader import default_path
from sophia.doctor import _snowflake
from sophia.errors import ConfigurationError
from sophia.services.captures import captures
from sophia.settings import Settings
from tests.integration.conftest import Running
from tests.integration.library import Library
from tests.integration.snowflake.conftest import Snow, by_stream
from tests.waiting import until

ROOT = Path(__file__).parents[3]
METRICS = (
    "CREATE TABLE BUSINESS_METRICS (ID NUMBER(38,0) PRIMARY KEY, DATA_TYPE VARCHAR, SOURCE_SYSTEM VARCHAR, "
    "METRIC VARCHAR, CONTENT VARCHAR, CONFIDENCE FLOAT, CREATED_AT TIMESTAMP_NTZ, UPDATED_AT TIMESTAMP_NTZ)"
)


def metric(number: int, content: str) -> str:
    return (
        f"INSERT INTO BUSINESS_METRICS VALUES ({number}, 'revenue', 'erp', 'growth', '{content}', 0.9, "
        "'2026-03-01', CURRENT_TIMESTAMP()::TIMESTAMP_NTZ)"
    )


def test_a_row_becomes_searchable_by_the_catalogs_own_index(
    snow: Snow, catalog: Catalog, library: Library, run_loop: Any
) -> None:
    """Snowflake's capitals meet a template and metadata in small letters, as the local source has them."""
    index = catalog.index("business_intelligence").model_copy(update={"shards": 2})
    small = catalog.model_copy(update={"indexes": (index,)})
    snow.run(METRICS)
    snow.run(metric(1, "Revenue grew by four per cent"))
    snow.start(by_stream("business_metrics", "public.business_metrics"))
    until(lambda: snow.documents("business_metrics"), "the first row")
    indexer: Running = run_loop(library.indexer(small))

    def stored() -> dict[str, Any]:
        assert indexer.error is None
        name = snow.own.execute("SELECT store_name FROM sophia.index_versions").fetchone()
        assert name is not None
        return {
            key: (text, metadata)
            for key, text, metadata in snow.own.execute(f"SELECT key, content, metadata FROM indexes.{name[0]}")
        }

    until(lambda: "[1]" in stored(), "the first row in the index")
    text, metadata = stored()["[1]"]
    assert text == "growth\n\nRevenue grew by four per cent"
    assert metadata["source_system"] == "erp"
    assert metadata["created_at"] == "2026-03-01T00:00:00Z"
    snow.run(metric(2, "Churn fell"))
    snow.run("UPDATE BUSINESS_METRICS SET CONTENT = 'Revenue fell' WHERE ID = 1")
    until(lambda: stored().get("[1]", ("",))[0] == "growth\n\nRevenue fell" and "[2]" in stored(), "both changes")
    snow.run("DELETE FROM BUSINESS_METRICS WHERE ID = 1")
    until(lambda: "[1]" not in stored(), "the delete")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The catalog, but BUSINESS_METRICS comes from Snowflake in the local profile too."""
    for file in default_path().glob("*.yaml"):
        content = yaml.safe_load(file.read_text())
        if file.name == "collections.yaml":
            for collection in content["collections"]:
                if collection["name"] == "business_metrics":
                    collection["source"] = {"local": "snowflake", "cluster": "snowflake"}
                    collection["snowflake"] = {"poll_seconds": 0.1}
        if file.name == "sources.yaml":
            for source in content["sources"]:
                source.pop("private_key_env", None)
        (tmp_path / file.name).write_text(yaml.safe_dump(content))
    return tmp_path


def url_of(snow: Snow) -> str:
    return (
        f"snowflake://sophia:snow@example-account/{snow.name}?warehouse=LOADING&host=127.0.0.1&port={snow.port}"
        "&protocol=http"
    )


def test_the_command_survives_kill_9(snow: Snow, folder: Path, tmp_path: Path) -> None:
    snow.run(METRICS)
    for number in range(5):
        snow.run(metric(number, f"text {number}"))
    environment = {
        **os.environ,
        "SOPHIA_DATABASE_URL": snow.database.url,
        "SOPHIA_CATALOG": str(folder),
        "SOPHIA_HOME": str(tmp_path / "home"),
        "SOPHIA_SNOWFLAKE_URL": url_of(snow),
        "SOPHIA_SNOWFLAKE__BATCH_DOCUMENTS": "2",
    }

    def contents() -> dict[str, str]:
        return {key: body["content"] for key, body in snow.documents("business_metrics").items()}

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sophia", "capture", "--source", "snowflake"]
        return subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)

    first = start()
    until(lambda: len(contents()) == 5, "the copy", 60)
    snow.run("UPDATE BUSINESS_METRICS SET CONTENT = 'changed' WHERE ID = 0")
    first.kill()
    first.wait(60)
    snow.run("DELETE FROM BUSINESS_METRICS WHERE ID IN (1, 2)")
    second = start()
    until(lambda: contents() == {"[0]": "changed", "[3]": "text 3", "[4]": "text 4"}, "what changed meanwhile", 60)
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 0


def test_sources_come_from_the_catalog_and_the_doctor_looks_at_them(
    snow: Snow, folder: Path, settings: Settings
) -> None:
    catalog = load(folder)
    with pytest.raises(ConfigurationError, match="SOPHIA_SNOWFLAKE_URL is not set"):
        snowflake_sources(catalog, settings)
    loops, watched = captures(catalog, settings, snow.database)
    others = {f"capture {source.name}" for source in watched}
    assert others, "PostgreSQL is captured all the same"
    assert {loop.name for loop in loops} == others | {"capture snowflake"}
    with pytest.raises(ConfigurationError, match="SOPHIA_SNOWFLAKE_URL is not set"):
        next(loop for loop in loops if loop.name == "capture snowflake").run(threading.Event())
    configured = settings.model_copy(update={"snowflake_url": SecretStr(url_of(snow))})
    (source,) = snowflake_sources(catalog, configured)
    assert (source.name, source.account.database, len(source.bindings)) == ("snowflake", snow.name, 1)
    assert [finding.state for finding in _snowflake(catalog, configured)] == ["fail"]
    snow.run(METRICS)
    (finding,) = _snowflake(catalog, configured)
    assert (finding.state, finding.found) == ("ok", "8 columns, key ID")
