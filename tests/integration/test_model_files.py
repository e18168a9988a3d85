"""A model whose files were replaced in place: never its query or document on vectors of the former one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sophia.errors import ConfigurationError
from sophia.indexing import versions
from sophia.indexing.search import search
from sophia.indexing.versions import active_versions
from tests.integration.library import Library
from tests.waiting import until


def test_version_whose_model_files_were_replaced_is_neither_fed_nor_searched(
    library: Library, run_loop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library.put(1, body="before")
    library.version()
    library.repair()
    search(library.connection, "documents", "before", lambda version: library.embedder)
    monkeypatch.setattr(versions, "model_fingerprint", lambda model, precision: "another")
    with pytest.raises(ConfigurationError, match="put the former files back"):
        search(library.connection, "documents", "before", lambda version: library.embedder)
    with caplog.at_level("ERROR"):
        run_loop(library.indexer())
    library.put(2, body="after")
    until(lambda: "not indexing documents v1" in caplog.text, "the refusal")
    until(lambda: library.contents(active_versions(library.connection)[-1]).get("[2]"), "the new version to be fed")
    assert "[2]" not in library.contents(active_versions(library.connection)[0])
