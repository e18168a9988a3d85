"""The engine with the real small model against sentence-transformers in float32, one text at a time."""

from __future__ import annotations

import gc
import importlib
import random
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sophia.catalog import Catalog
from sophia.catalog.models import EmbeddingModel
from sophia.embedding import RefusedTextsError, load_embedder
from sophia.embedding.agreement import EXACT, FAST, Agreement
from sophia.embedding.base import DeviceMemoryError, Ids, Vectors
from sophia.embedding.local import FEW_TOKENS, LocalEmbedder
from sophia.embedding.models import model_path
from sophia.settings import load_settings

# What bfloat16 may change of the nearest neighbours.
SAME_NEAREST = 0.98
DOCSTRINGS = 200
MODULES = ("argparse", "asyncio", "collections", "datetime", "email", "heapq", "json", "logging", "os", "random", "re")
MODULES += ("shutil", "socket", "statistics", "string", "subprocess", "tarfile", "threading", "unittest")

ODD = {
    "empty": "",
    "white space": " \n\t \u00a0\u3000",
    "one token": "word",
    "one short of the length": "word " * 253,
    "the length": "word " * 254,
    "one more than the length": "word " * 255,
    "long": "sentences and words, " * 5_000,
    "long without white space": "abcdefghij" * 10_000,
    "long word behind words": "word " * 100 + "x" * 100_000,
    "long without letters": "-" * 10_000,
    "emoji": "😀🦎🐍 🇩🇪",
    "zero-width joiners": "👩‍👩‍👧‍👦 👨🏽‍💻" * 40,
    "right to left": "שלום עולם, مرحبا بالعالم \u202eabc\u202c",
    "control characters": "".join(map(chr, range(32))) + "a\x7f\x85b\u200b\u2028\ufeff",
    "nul": "a\x00b" + "\x00" * 300,
    "combining marks": "e\u0301" * 50 + "z" + "\u0300" * 500,
    "cjk": "数据库中的一行发生变化，" * 60,
    "hangul": "데이터베이스" * 50,
    "repeated character": "a" * 10_000,
    "repeated cjk character": "日" * 10_000,
    "specials": "[CLS] [SEP] [PAD] [MASK] [UNK] </s>",
    "unassigned": "\U000e0001\U0010ffff\ue000",
    "half a surrogate pair": "cut \ufffd here",
}


@pytest.fixture(scope="module")
def model(catalog: Catalog) -> EmbeddingModel:
    return catalog.model("minilm")


@pytest.fixture(scope="module")
def docstrings() -> list[str]:
    """Real texts of all lengths."""
    found = set()
    for name in MODULES:
        for value in vars(importlib.import_module(name)).values():
            text = getattr(value, "__doc__", None)
            if isinstance(text, str) and len(text) > 20:
                found.add(text)
    return random.Random(0).sample(sorted(found), DOCSTRINGS)


@pytest.fixture(scope="module")
def oracle(model: EmbeddingModel) -> Callable[[Sequence[str]], Vectors]:
    """sentence-transformers in float32, one text at a time."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model_path(model), device="cpu", model_kwargs={"dtype": "float32"})
    loaded.max_seq_length = model.max_tokens

    def encode(texts: Sequence[str]) -> Vectors:
        one = partial(loaded.encode, normalize_embeddings=True, show_progress_bar=False)
        vectors: Any = [one([text])[0] for text in texts]
        return np.stack(vectors)

    return encode


def load(model: EmbeddingModel, precision: Any) -> LocalEmbedder:
    embedder = load_embedder(model, precision, load_settings(device="cpu", embedding={"backend": "torch"}))
    assert isinstance(embedder, LocalEmbedder)
    return embedder


@pytest.fixture(scope="module")
def exact(model: EmbeddingModel) -> LocalEmbedder:
    return load(model, "exact")


@pytest.fixture(scope="module")
def fast(model: EmbeddingModel) -> LocalEmbedder:
    return load(model, "fast")


@pytest.fixture(scope="module")
def wanted(oracle: Callable[[Sequence[str]], Vectors], docstrings: list[str]) -> Vectors:
    return oracle(docstrings)


@pytest.fixture(scope="module")
def wanted_odd(oracle: Callable[[Sequence[str]], Vectors]) -> Vectors:
    return oracle(list(ODD.values()))


def test_exact_agrees_on_real_texts(exact: LocalEmbedder, docstrings: list[str], wanted: Vectors) -> None:
    assert exact.backend.endswith("float32 packed")
    agreement = Agreement.of(exact.embed(docstrings), wanted)
    assert agreement.difference <= EXACT
    assert agreement.same_nearest == 1


def test_fast_agrees_on_real_texts(fast: LocalEmbedder, docstrings: list[str], wanted: Vectors) -> None:
    assert fast.backend.endswith("packed")
    agreement = Agreement.of(fast.embed(docstrings), wanted)
    assert agreement.cosine >= FAST
    assert agreement.same_nearest >= SAME_NEAREST


def test_exact_agrees_on_odd_texts(exact: LocalEmbedder, wanted_odd: Vectors) -> None:
    differences = np.abs(exact.embed(list(ODD.values())) - wanted_odd).max(axis=1)
    assert {name: value for name, value in zip(ODD, differences, strict=True) if not value <= EXACT} == {}


def test_fast_agrees_on_odd_texts(fast: LocalEmbedder, wanted_odd: Vectors) -> None:
    cosines = (fast.embed(list(ODD.values())) * wanted_odd).sum(axis=1)
    assert {name: value for name, value in zip(ODD, cosines, strict=True) if not value >= FAST} == {}


def test_half_a_surrogate_pair_stops_nothing(exact: LocalEmbedder, wanted_odd: Vectors) -> None:
    vectors = exact.embed(["cut \ud83d here", "word"])
    names = list(ODD)
    assert np.abs(vectors - wanted_odd[[names.index("half a surrogate pair"), names.index("one token")]]).max() <= EXACT


@pytest.mark.parametrize("precision", ["exact", "fast"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_vector_does_not_depend_on_its_batch(
    precision: str, request: pytest.FixtureRequest, wanted_odd: Vectors, data: st.DataObject
) -> None:
    embedder: LocalEmbedder = request.getfixturevalue(precision)
    embedder.pass_tokens = data.draw(st.sampled_from([None, 1, 100, 600]), label="pass_tokens")
    places = data.draw(st.lists(st.integers(0, len(ODD) - 1), min_size=1, max_size=8), label="places")
    texts = list(ODD.values())
    vectors = embedder.embed([texts[place] for place in places])
    embedder.pass_tokens = None
    agreement = Agreement.of(vectors, wanted_odd[places])
    assert agreement.difference <= EXACT if precision == "exact" else agreement.cosine >= FAST


class Limited:
    """The real backend on a device whose memory holds so many tokens."""

    def __init__(self, backend: Any, limit: int, when_waited_for: bool) -> None:
        self._backend = backend
        self._limit = limit
        self._when_waited_for = when_waited_for
        self.device, self.padded = backend.device, backend.padded

    def start(self, batch: Sequence[Ids]) -> Callable[[], Vectors]:
        def fail() -> Vectors:
            raise DeviceMemoryError("the test's limit")

        if sum(map(len, batch)) <= self._limit:
            wait: Callable[[], Vectors] = self._backend.start(batch)
            return wait
        return fail if self._when_waited_for else fail()  # type: ignore[return-value]


@pytest.mark.parametrize("when_waited_for", [False, True])
def test_same_vectors_although_memory_is_short(
    model: EmbeddingModel, wanted_odd: Vectors, monkeypatch: pytest.MonkeyPatch, when_waited_for: bool
) -> None:
    embedder = load(model, "exact")
    monkeypatch.setattr(embedder, "_backend", Limited(embedder._backend, 200, when_waited_for))
    lengths = [len(ids) for ids in embedder._front.encode(list(ODD.values()))]
    too_long = [place for place, length in enumerate(lengths) if length > 200]
    with pytest.raises(RefusedTextsError) as refused:
        embedder.embed(list(ODD.values()))
    assert sorted(refused.value.reasons) == too_long
    assert refused.value.reasons[too_long[0]] == f"its {lengths[too_long[0]]} tokens do not fit into the memory of cpu"
    good = [place for place in range(len(ODD)) if place not in too_long]
    assert np.abs(refused.value.vectors[good] - wanted_odd[good]).max() <= EXACT
    assert embedder.budget_tokens <= 200
    assert embedder.figures.tokens == sum(lengths[place] for place in good)
    assert embedder.figures.seconds > 0


def test_lack_of_memory_as_torch_says_it(exact: LocalEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error holds nothing of the pass, so that its memory can be given back before a smaller one is tried."""
    import torch

    held: list[weakref.ref[Any]] = []

    real = exact._backend._transformer.forward  # type: ignore[attr-defined]
    text = "a text of more than a few tokens"

    def forward(features: Any) -> Any:
        if features["input_ids"].numel() <= FEW_TOKENS:
            return real(features)
        large = torch.zeros(1_000)
        held.append(weakref.ref(large))
        return large + torch.empty(1 << 60, dtype=torch.int8)

    with monkeypatch.context() as patch:
        patch.setattr(exact._backend._transformer, "forward", forward)  # type: ignore[attr-defined]
        gc.disable()
        try:
            with pytest.raises(DeviceMemoryError, match="can't allocate memory") as caught:
                exact.probe([text])
            assert held[0]() is None, f"{caught.value!r} holds it"
        finally:
            gc.enable()
        with pytest.raises(RefusedTextsError, match="do not fit into the memory of cpu"):
            exact.embed([text])
    assert exact.embed([text]).shape == (1, 384)


def test_other_faults_of_torch_are_no_lack_of_memory(exact: LocalEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(_: Any) -> Any:
        raise RuntimeError("another fault")

    monkeypatch.setattr(exact._backend._transformer, "forward", fault)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="another fault"):
        exact.embed(["four"])
