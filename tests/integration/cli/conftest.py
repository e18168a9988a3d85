"""The command line over a real database. A command runs in this process, from its arguments to its exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

import sophia.embedding
from sophia.catalog import Catalog
from sophia.cli import main
from sophia.database import Database
from tests.console import Documents
from tests.embedders import HashEmbedder


@dataclass(frozen=True)
class Done:
    """What a command left: exit code, output, messages."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Sophia = Callable[..., Done]


@pytest.fixture
def sophia_command(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Sophia:
    """Runs `sophia …` on the test's database."""
    monkeypatch.setenv("SOPHIA_DATABASE_URL", database.url)
    monkeypatch.setenv("SOPHIA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["sophia", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return Done(int(ended.value.code or 0), shown.out, shown.err)

    return run


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> HashEmbedder:
    """What commands load instead of the real model."""
    embedder = HashEmbedder()
    monkeypatch.setattr(sophia.embedding, "load_embedder", lambda *arguments: embedder)
    return embedder


@pytest.fixture
def documents(connection: psycopg.Connection[TupleRow], catalog: Catalog, embedder: HashEmbedder) -> Documents:
    """The index `documents` with three rows."""
    documents = Documents(connection, catalog)
    documents.put(1, "Lighthouse", "keeps ships from rocks", kind="story")
    documents.put(2, "Sourdough", "rises slowly", kind="recipe")
    documents.put(3, "Glacier", "carves valleys", kind="story")
    return documents
