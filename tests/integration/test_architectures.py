"""Whatever way an architecture is computed agrees with sentence-transformers, and a way that does not is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sophia.catalog.models import EmbeddingModel
from sophia.embedding import Embedder, RefusedTextsError, attention, load_embedder, torch_backend
from sophia.embedding.agreement import EXACT, FAST, Agreement
from sophia.embedding.base import Vectors
from sophia.errors import ConfigurationError
from sophia.settings import load_settings
from tests.integration import tiny_models

TEXTS = [
    "",
    "  ",
    "one",
    "two",
    "an <mask> and a <pad> in the text",
    "naïve café, 日本語 and עברית \x00 \u200d👩‍👩‍👧",
    "x" * 300,
    "word " * 400,
    *[f"number {n} of a few texts " * n for n in range(1, 30, 4)],
]
PACKED = ["bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "qwen3", "llama", "mistral-window"]
# Relative positions and soft caps are no part of packed attention.
PADDED = ["mpnet", "t5", "gemma2-softcap"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that share the work of so small a model wait for each other most of the time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def one_by_one(model: EmbeddingModel, texts: list[str]) -> Vectors:
    """The oracle: float32, no padding, no batch."""
    from sentence_transformers import SentenceTransformer

    oracle = SentenceTransformer(str(model.path), device="cpu", model_kwargs={"dtype": "float32"})
    vectors: Any = [oracle.encode([text], normalize_embeddings=True, show_progress_bar=False)[0] for text in texts]
    return np.stack(vectors)


def load(model: EmbeddingModel, precision: Any = "exact") -> Embedder:
    return load_embedder(model, precision, load_settings(device="cpu", embedding={"backend": "torch"}))


def pooling_of(architecture: str) -> str:
    return "lasttoken" if architecture in ("qwen3", "llama") else "mean"


@pytest.mark.parametrize(
    ("architecture", "way"), [(name, "packed") for name in PACKED] + [(name, "padded") for name in PADDED]
)
def test_architecture_agrees_one_by_one_and_in_any_batch(architecture: str, way: str, tmp_path: Path) -> None:
    model = tiny_models.save(tmp_path, architecture, pooling_of(architecture))
    embedder = load(model)
    assert embedder.backend.endswith(f"float32 {way}")
    oracle = one_by_one(model, TEXTS)
    assert np.abs(embedder.embed(TEXTS) - oracle).max() <= EXACT
    assert np.abs(embedder.embed(TEXTS[::-1])[::-1] - oracle).max() <= EXACT
    embedder.pass_tokens = 1
    assert np.abs(embedder.embed(TEXTS) - oracle).max() <= EXACT


@pytest.mark.parametrize("architecture", [name for name in PACKED + PADDED if name != "t5"])
def test_fast_keeps_its_promise(architecture: str, tmp_path: Path) -> None:
    """With weights of the usual size; T5 is known to need more digits than bfloat16 has."""
    model = tiny_models.save(tmp_path, architecture, pooling_of(architecture), weights=0.05)
    assert Agreement.of(load(model, "fast").embed(TEXTS), one_by_one(model, TEXTS)).cosine >= FAST


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
@pytest.mark.parametrize(
    ("pooling", "options"),
    [
        ("cls", {}),
        ("max", {}),
        ("lasttoken", {}),
        ("weightedmean", {}),
        ("mean_sqrt_len_tokens", {}),
        ("mean", {"normalize": True}),
        (("cls", "mean"), {"dense": True, "normalize": True}),
        ("mean", {"dense": True}),
    ],
    ids=str,
)
def test_modules_behind_the_transformer(
    architecture: str, pooling: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_models.save(tmp_path, architecture, pooling, **options)
    embedder = load(model)
    assert embedder.backend.endswith("packed" if architecture in PACKED else "padded")
    assert np.abs(embedder.embed(TEXTS) - one_by_one(model, TEXTS)).max() <= EXACT


def test_weights_in_half_precision_are_computed_in_float32(tmp_path: Path) -> None:
    model = tiny_models.save(tmp_path, "qwen3", "lasttoken", dtype="bfloat16")
    embedder = load(model)
    assert "float32" in embedder.backend
    assert np.abs(embedder.embed(TEXTS) - one_by_one(model, TEXTS)).max() <= EXACT


def test_rotary_frequencies_keep_their_digits_in_half_precision(tmp_path: Path) -> None:
    """In bfloat16 they are near enough for short texts, and wrong for long ones."""
    import torch

    model = tiny_models.save(tmp_path, "qwen3", "lasttoken")
    backend = torch_backend.TorchBackend(load_sentence_transformer(model), "fast")
    found = dict(backend._transformer.model.named_buffers())["rotary_emb.inv_freq"]
    assert found.dtype == torch.float32
    assert (found == found.to(torch.bfloat16)).sum() < len(found), "they have no more digits than bfloat16 holds"


def load_sentence_transformer(model: EmbeddingModel) -> Any:
    from sophia.embedding.loading import load_sentence_transformer

    return load_sentence_transformer(model, str(model.path), load_settings(device="cpu"))


def test_default_prompt_of_the_model_is_not_used(tmp_path: Path) -> None:
    """Prompts come from the catalog."""

    def prompted(model: Any) -> None:
        model.prompts = {"document": "passage: "}
        model.default_prompt_name = "document"

    model = tiny_models.save(tmp_path, "bert", change=prompted)
    oracle = one_by_one(model, ["text"])
    assert np.abs(load(model).embed(["passage: text"]) - oracle).max() <= EXACT
    assert np.abs(load(model).embed(["text"]) - oracle).max() > EXACT
    with_prompt = model.model_copy(update={"document_prefix": "passage: "})
    assert np.abs(load(with_prompt).embed(["text"]) - oracle).max() <= EXACT


def test_text_without_a_token_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    """Its last token would be that of the text before it."""
    model = tiny_models.save(tmp_path, "qwen3", "lasttoken", specials=False)
    with pytest.raises(RefusedTextsError, match="finds nothing in it") as refused:
        load(model).embed(["one", "", "two", ""])
    assert sorted(refused.value.reasons) == [1, 3]
    assert not refused.value.vectors[[1, 3]].any()
    assert np.abs(refused.value.vectors[[0, 2]] - one_by_one(model, ["one", "two"])).max() <= EXACT


def test_tokenizer_that_keeps_the_end_of_a_text_is_a_clear_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="keeps the beginning of a long text"):
        load(tiny_models.save(tmp_path, "bert", truncation="left"))


def _positions_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def running(self: Any, batch: Any) -> dict[str, Any]:
        features = packed(self, batch)
        count = features["position_ids"].shape[1]
        return features | {"position_ids": features["position_ids"].new_tensor([range(count)]) % 300}

    packed = torch_backend.TorchBackend._packed
    monkeypatch.setattr(torch_backend.TorchBackend, "_packed", running)


def _positions_without_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "_padding_position", lambda _: None)


def _texts_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "runs_of", lambda lengths: [(1, sum(lengths))])


def _equal_texts_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = attention.runs_of
    monkeypatch.setattr(attention, "runs_of", lambda lengths: [(1, n * length) for n, length in runs(lengths)])


def _attention(**fixed: Any) -> Callable[[pytest.MonkeyPatch], None]:
    def change(monkeypatch: pytest.MonkeyPatch) -> None:
        real = attention.packed_attention
        monkeypatch.setattr(attention, "packed_attention", lambda *args, **named: real(*args, **(named | fixed)))

    return change


@pytest.mark.parametrize(
    ("architecture", "fault"),
    [
        pytest.param("bert", _positions_run_on, id="positions run on"),
        pytest.param("roberta", _positions_without_offset, id="positions without offset"),
        pytest.param("bert", _texts_see_each_other, id="texts see each other"),
        pytest.param("bert", _equal_texts_see_each_other, id="equal texts see each other"),
        pytest.param("qwen3", _attention(is_causal=False), id="causal mask lost"),
        pytest.param("bert", _attention(is_causal=True), id="causal mask added"),
        pytest.param("modernbert", _attention(sliding_window=None), id="window lost"),
        pytest.param("modernbert-wide", _attention(sliding_window=None), id="wide window lost"),
        pytest.param("mistral-window", _attention(sliding_window=None), id="causal window lost"),
        pytest.param("bert", _attention(scaling=1.0), id="another scale"),
    ],
)
def test_wrong_packing_is_noticed_at_load(
    architecture: str, fault: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In that case the model is computed padded, and right."""
    model = tiny_models.save(tmp_path, architecture)
    fault(monkeypatch)
    embedder = load(model)
    assert embedder.backend.endswith("padded")
    assert np.abs(embedder.embed(TEXTS) - one_by_one(model, TEXTS)).max() <= EXACT


def test_model_that_no_way_computes_is_a_clear_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_mask(self: Any, batch: Any) -> dict[str, Any]:
        features = padded(self, batch)
        return features | {"attention_mask": features["attention_mask"] * 0 + 1}

    model = tiny_models.save(tmp_path, "mpnet")
    padded = torch_backend.TorchBackend._padded
    monkeypatch.setattr(torch_backend.TorchBackend, "_padded", without_mask)
    with pytest.raises(ConfigurationError, match=r"cannot be computed here with precision 'exact': .*packed.*padded"):
        load(model)


def test_what_packed_attention_cannot_do_is_an_error() -> None:
    """Not ignored: an agreement on a few short texts might not show it."""
    with pytest.raises(ValueError, match="has no softcap, s_aux"):
        attention.packed_attention(
            None, None, None, None, None, cu_seq_lens_q=None, max_length_q=1, softcap=1.0, s_aux=1, dropout=0.0
        )
    with pytest.raises(ValueError, match="has no mask"):
        attention.packed_attention(None, None, None, None, object(), cu_seq_lens_q=None, max_length_q=1)
