"""The service with the real default model, lexicon and sentences."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest

from sophia.catalog import Catalog
from sophia.embedding import load_embedder
from sophia.embedding.base import Embedder
from sophia.settings import load_settings
from tests.inference import inference

TEXTS = ["hello", "", "Ein Ä🙂 عربى", "a\x00b", "long " * 2_000]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Embedder:
    """MiniLM, loaded once more than the service does: its vectors are what is expected."""
    return load_embedder(catalog.model("minilm"), "exact", load_settings(home=tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Iterator[httpx.Client]:
    settings = load_settings(home=tmp_path_factory.mktemp("home"))
    with inference(settings, catalog, load_embedder) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def test_vectors_are_those_of_the_engine(client: httpx.Client, embedder: Embedder) -> None:
    answer = client.post("/embed", json={"texts": TEXTS}).json()
    expected = embedder.embed(TEXTS)
    cosines = (np.array(answer["vectors"]) * expected).sum(axis=1)
    assert cosines.min() > 0.99999
    # Special ones included, none beyond the model's length.
    counts = [min(256, len(embedder.tokenizer.encode(text).ids)) for text in TEXTS]
    assert (answer["tokens"], counts[0], counts[-1]) == (sum(counts), 3, 256)
    speaks = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)
    compatible = speaks.embeddings.create(model="minilm", input=TEXTS)
    assert np.array_equal([each.embedding for each in compatible.data], np.array(answer["vectors"], dtype=np.float32))
    assert compatible.usage.prompt_tokens == sum(counts)


def test_functions_say_what_the_texts_say(client: httpx.Client) -> None:
    moods = client.post("/analyze", json={"texts": ["What a wonderful day!", "This is terrible.", "A table."]}).json()
    assert [each["label"] for each in moods["results"]] == ["positive", "negative", "neutral"]
    labels = ["sport", "cooking", "politics"]
    asked = {"texts": ["The striker scored twice.", "Stir the onions in butter."], "labels": labels}
    classified = client.post("/classify", json=asked).json()["results"]
    assert [each["label"] for each in classified] == ["sport", "cooking"]
    assert [sum(each["scores"].values()) for each in classified] == pytest.approx([1.0, 1.0], abs=1e-5)
    text = "The dam broke at night. A dam is made of concrete. The flood from the broken dam took the village. We ate."
    summary = client.post("/summarize", json={"text": text, "sentences": 1}).json()
    assert "dam" in summary["summary"]
