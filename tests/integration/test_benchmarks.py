"""The benchmarks run: each quick mode against the real processes, and the embedder that they share."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.hash_endpoint import DIMENSION, Application, serving, vector
from sophia.catalog.models import EmbeddingModel
from sophia.embedding import load_embedder
from sophia.settings import Settings

PROJECT = Path(__file__).parents[2]
TEXTS = ["a heron waits", "a heron waits by the river", "Grüße, 世界"]


def ask(application: Application, path: str, **body: Any) -> Any:
    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://hash") as client:
            return await client.post(path, json=body)

    answer = asyncio.run(post())
    assert answer.status_code == 200
    return answer.json()


@pytest.mark.parametrize("path", ["/embeddings", "/v1/embeddings"])
def test_hash_endpoint_speaks_openai(path: str) -> None:
    application = Application(DIMENSION, 0)
    floats = ask(application, path, model="hash", input=TEXTS)["data"]
    packed = ask(application, path, model="hash", input=TEXTS, encoding_format="base64")["data"]
    for number, text in enumerate(TEXTS):
        assert floats[number]["index"] == packed[number]["index"] == number
        assert np.array_equal(np.array(floats[number]["embedding"], dtype=np.float32), vector(text))
        assert np.array_equal(np.frombuffer(base64.b64decode(packed[number]["embedding"]), "<f4"), vector(text))
    assert application.counts()["texts"] == 2 * len(TEXTS)
    assert application.counts()["calls"] == 2


def test_hash_endpoint_speaks_ollama() -> None:
    vectors = ask(Application(DIMENSION, 0), "/api/embed", model="hash", input=TEXTS[0])["embeddings"]
    assert np.array_equal(np.array(vectors[0], dtype=np.float32), vector(TEXTS[0]))


def test_hash_vectors_tell_texts_apart() -> None:
    vectors = np.stack([vector(text) for text in TEXTS])
    cosines = vectors @ vectors.T
    assert np.allclose(np.diag(cosines), 1)
    assert np.abs(cosines - np.eye(len(TEXTS))).max() < 0.5


def test_sophia_embeds_with_the_hash_endpoint(settings: Settings) -> None:
    with serving() as endpoint:
        model = EmbeddingModel(
            name="hash",
            description="A function of the text's hash.",
            provider="openai",
            url=endpoint.url,
            model="hash",
            dimension=DIMENSION,
            max_tokens=256,
            version="1",
        )
        vectors = load_embedder(model, "exact", settings).embed(TEXTS)
        counts = endpoint.counts()
        endpoint.reset()
        assert (counts["texts"], endpoint.counts()["texts"]) == (len(TEXTS), 0)
    assert np.allclose(vectors, np.stack([vector(text) for text in TEXTS]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["search_scale"],
        ["hot_path"],
        ["hot_path", "--beside-backfill"],
        ["changes"],
        ["initial_load"],
        ["growth"],
        ["embedding", "--arms", "exact torch", "fast torch"],
        ["inference"],
    ],
    ids=" ".join,
)
def test_quick_mode(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{arguments[0]}", "--quick", *arguments[1:]],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "nothing written" in done.stdout
