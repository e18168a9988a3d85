"""How far, how fast, how much of what the device could do: arithmetic on an embedder's figures."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from sophia.catalog import Catalog
from sophia.embedding import load_embedder, progress
from sophia.embedding.ceiling import NUMBERS, TransformerCost, matrix_ceiling, number_format, transformer_cost
from sophia.embedding.progress import Lines, Meter
from sophia.settings import Settings
from tests.embedders import TOKENS_PER_SECOND, HashEmbedder


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class CountedEngine:
    """A device of a known ceiling, and a model of a known cost."""

    device: Literal["cpu", "cuda"] = "cpu"
    number: str | None = "float32"
    budget_tokens = 512

    def __init__(self, cost: TransformerCost | None) -> None:
        self._cost = cost

    def flop_per_token(self, length: float) -> float | None:
        return self._cost.flop_per_token(length) if self._cost is not None else None


@pytest.fixture
def embedder() -> HashEmbedder:
    embedder = HashEmbedder()
    embedder.embed(["what was before does not count"] * 500)
    return embedder


def test_pace_and_rest_follow_documents_and_clock(embedder: HashEmbedder) -> None:
    clock = Clock()
    meter = Meter(embedder, 400, clock)
    assert meter.reading(0).eta_seconds is None
    embedder.embed(["word " * 10] * 100)
    clock.now += 5
    reading = meter.reading(100)
    assert (reading.done, reading.total, reading.eta_seconds) == (100, 400, 15.0)
    assert reading.cost.texts == 100
    assert reading.cost.tokens_per_second == pytest.approx(TOKENS_PER_SECOND)
    assert "100,000 tokens/s" in str(reading)
    assert "15 s left" in str(reading)
    # An estimate that was too low is not below what is done.
    over = meter.reading(1000)
    assert (over.total, over.eta_seconds) == (1000, 0.0)
    assert "left" not in str(over)


@pytest.mark.parametrize(("seconds", "shown"), [(30, "30 s"), (600, "10 min"), (9000, "2.5 h")])
def test_the_rest_is_said_in_units_that_people_use(embedder: HashEmbedder, seconds: float, shown: str) -> None:
    clock = Clock()
    meter = Meter(embedder, 2, clock)
    clock.now += seconds
    assert f"{shown} left" in str(meter.reading(1))


def test_share_of_the_ceiling(embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of 20 tokens: 1,000 + 10 * 20 operations a token at 100,000 tokens a second, of 480 millions."""
    monkeypatch.setattr(progress, "matrix_ceiling", lambda device, number: 480e6)
    embedder.engine = CountedEngine(TransformerCost(linear=1000, attention=10))
    meter = Meter(embedder, 1)
    text = "x" * 72
    embedder.embed([text] * 99)
    assert meter.reading(1).roofline is None, "of so few tokens nothing can be said"
    embedder.embed([text] * 901)
    assert meter.reading(1).roofline == pytest.approx(0.25)
    assert "25% of the device's matrix products" in str(meter.reading(1))
    # What came from a cache or was there twice has cost no token.
    embedder.figures.texts += 5000
    embedder.figures.cache_hits += 3000
    embedder.figures.duplicates += 1500
    embedder.figures.refused += 500
    assert meter.reading(1).roofline == pytest.approx(0.25)


@pytest.mark.parametrize("known", ["engine", "number", "cost", "ceiling"])
def test_share_is_not_guessed(embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch, known: str) -> None:
    engine = CountedEngine(None if known == "cost" else TransformerCost(1000, 10))
    engine.number = None if known == "number" else "float32"
    embedder.engine = None if known == "engine" else engine
    monkeypatch.setattr(progress, "matrix_ceiling", lambda device, number: None if known == "ceiling" else 1e9)
    meter = Meter(embedder, 1)
    embedder.embed(["word " * 100] * 100)
    reading = meter.reading(1)
    assert reading.roofline is None
    assert "matrix products" not in str(reading)
    assert reading.metadata()["roofline_share"] == 0.0


def test_metadata_is_numbers_under_the_same_names(embedder: HashEmbedder) -> None:
    meter = Meter(embedder, 1)
    empty = meter.reading(0).metadata()
    embedder.embed(["a"])
    embedder.figures.padding += embedder.figures.tokens
    embedder.figures.cache_hits += 7
    embedder.figures.out_of_memory += 2
    found = meter.reading(1)
    assert set(found.metadata()) == set(empty)
    assert all(isinstance(value, int | float) for value in found.metadata().values())
    assert (found.metadata()["cache_hits"], found.metadata()["out_of_memory"]) == (7, 2)
    assert "cache hits 7" in str(found)
    assert "out of memory 2" in str(found)
    assert "duplicates" not in str(found)


def test_padding_is_a_share_of_what_was_computed(embedder: HashEmbedder) -> None:
    meter = Meter(embedder, 1)
    embedder.embed(["word " * 100])
    embedder.figures.padding += 3 * meter.reading(1).cost.tokens
    assert meter.reading(1).metadata()["padding_share"] == 0.75
    assert "padding 75.0%" in str(meter.reading(1))


def test_lines_are_written_now_and_then_and_at_the_end_of_a_part() -> None:
    clock = Clock()
    written: list[str] = []
    lines = Lines(written.append, 10, clock)
    for step in range(100):
        clock.now += 1
        lines(step, ends=step == 55)
    # Each tenth second, and 55, from which the ten seconds count again.
    assert written == ["9", "19", "29", "39", "49", "55", "65", "75", "85", "95"]


# ---- the ceiling -------------------------------------------------------------------------------------------


def test_cost_of_a_transformer_counts_products_that_every_token_needs() -> None:
    from transformers import BertConfig, BertModel

    layers, hidden = 3, 16
    config = BertConfig(
        vocab_size=50, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=4 * hidden
    )
    for pooler in (True, False):
        cost = transformer_cost(BertModel(config, add_pooling_layer=pooler))
        assert cost is not None
        # Four of attention and two of four times the size behind it: 12 h² weights a layer.
        assert cost.linear == 2 * 12 * layers * hidden**2
        assert cost.attention == 4 * layers * hidden
        assert cost.flop_per_token(10) == cost.linear + 10 * cost.attention


@pytest.mark.parametrize("model", [None, object()])
def test_a_model_of_another_kind_has_no_cost(model: Any) -> None:
    assert transformer_cost(model) is None


@pytest.mark.parametrize(
    ("backend", "number"),
    [
        ("torch 2.15.0 cpu float32 packed", "float32"),
        ("torch 2.15.0 NVIDIA H200 bfloat16 packed", "bfloat16"),
        ("torch 2.15.0 Tesla T4 float16 padded", "float16"),
        ("openvino 2026.4.1 cpu int8", None),
        ("endpoint text-small", None),
    ],
)
def test_number_format_is_read_from_the_backend(backend: str, number: str | None) -> None:
    assert number_format(backend) == number
    assert number is None or number in NUMBERS


def test_ceiling_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    matrix_ceiling.cache_clear()
    first = matrix_ceiling("cpu", "float32")
    assert first is not None
    assert first > 0
    monkeypatch.setattr(torch, "mm", None)
    assert matrix_ceiling("cpu", "float32") == first


def test_full_memory_is_no_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("full")

    matrix_ceiling.cache_clear()
    monkeypatch.setattr(torch, "mm", full)
    assert matrix_ceiling("cpu", "float32") is None
    matrix_ceiling.cache_clear()


def test_the_real_engine_says_what_a_share_needs(catalog: Catalog, settings: Settings) -> None:
    embedder = load_embedder(catalog.model("minilm"), "exact", settings)
    engine = embedder.engine
    assert engine is not None
    assert (engine.device, engine.number) in {("cpu", "float32"), ("cuda", "float32")}
    assert engine.budget_tokens >= 16
    # Six layers of 384, the feed-forward part four times as wide.
    assert engine.flop_per_token(0) == 2 * 12 * 6 * 384**2
    meter = Meter(embedder, 1)
    embedder.embed([f"some words of text {number}, so that there are tokens enough" for number in range(200)])
    share = meter.reading(1).roofline
    assert share is not None
    assert share > 0
    probed = embedder.probe(["one", "another"])
    assert meter.reading(1).cost.texts == 200
    assert probed.shape == (2, 384)
    assert embedder.probe(["one", "another"]) is probed, "loading a model and opening a version ask for the same texts"
