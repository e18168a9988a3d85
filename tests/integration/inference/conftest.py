"""Fixtures of the inference service: one that serves in a thread with a cheap embedder, and clients of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from sophia.catalog import Catalog
from sophia.settings import Settings, load_settings
from tests.embedders import HashEmbedder
from tests.inference import hashed, inference

Serve = Callable[..., httpx.Client]


@pytest.fixture
def served(settings: Settings, catalog: Catalog, hash_embedder: HashEmbedder) -> Iterator[Serve]:
    """Starts a service with the given settings of its group, and returns a client of it."""
    with ExitStack() as stack:

        def start(**group: Any) -> httpx.Client:
            address = stack.enter_context(inference(settings, catalog, hashed(hash_embedder), **group))
            return stack.enter_context(httpx.Client(base_url=address, timeout=60))

        yield start


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Iterator[tuple[httpx.Client, HashEmbedder]]:
    """A service with default settings, and its embedder."""
    embedder = HashEmbedder()
    settings = load_settings(home=tmp_path_factory.mktemp("home"))
    with (
        inference(settings, catalog, hashed(embedder)) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield client, embedder


@pytest.fixture
def client(shared: tuple[httpx.Client, HashEmbedder]) -> httpx.Client:
    """A client of a service with default settings."""
    return shared[0]


@pytest.fixture
def embedder(shared: tuple[httpx.Client, HashEmbedder]) -> Iterator[HashEmbedder]:
    """The embedder of `client`; what a test sets is undone."""
    yield shared[1]
    shared[1].refused = {}
    shared[1].before = lambda texts: None
