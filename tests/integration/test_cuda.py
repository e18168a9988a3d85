"""The engine on an NVIDIA GPU: the promises of each precision, memory that runs short, and passes in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sophia.catalog import Catalog
from sophia.catalog.models import EmbeddingModel
from sophia.embedding import attention, load_embedder
from sophia.embedding.agreement import EXACT, FAST, PROBES, Agreement
from sophia.embedding.base import Ids, Vectors
from sophia.embedding.local import LocalEmbedder
from sophia.embedding.models import model_path
from sophia.settings import load_settings
from tests.integration import tiny_models

pytestmark = pytest.mark.gpu

TEXTS = ["", " ", "one", "😀", "x" * 5_000, "word " * 2_000]
TEXTS += [" ".join(f"{word} {n}" for word in probe.split()) for n in range(40) for probe in PROBES]


@pytest.fixture(scope="module", autouse=True)
def torch() -> Any:
    """The library, on a machine with a device."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device; run `pytest -m gpu` on a machine with an NVIDIA GPU")
    return torch


@pytest.fixture(scope="module")
def model(catalog: Catalog) -> EmbeddingModel:
    return catalog.model("minilm")


@pytest.fixture(scope="module")
def oracle(model: EmbeddingModel) -> Vectors:
    """sentence-transformers in float32 on the CPU, one text at a time."""
    return one_by_one(model_path(model), model.max_tokens)


def one_by_one(path: str, max_tokens: int) -> Vectors:
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(path, device="cpu", model_kwargs={"dtype": "float32"})
    loaded.max_seq_length = max_tokens
    vectors: Any = [loaded.encode([text], normalize_embeddings=True, show_progress_bar=False)[0] for text in TEXTS]
    return np.stack(vectors)


def load(model: EmbeddingModel, precision: Any, device: str = "cuda", budget: int | None = None) -> LocalEmbedder:
    settings = load_settings(device=device, embedding={"budget_tokens": budget})
    embedder = load_embedder(model, precision, settings)
    assert isinstance(embedder, LocalEmbedder)
    return embedder


def test_exact_is_padded_and_agrees(model: EmbeddingModel, oracle: Vectors) -> None:
    embedder = load(model, "exact")
    assert embedder.backend.endswith("float32 padded")
    agreement = Agreement.of(embedder.embed(TEXTS), oracle)
    assert agreement.difference <= EXACT
    assert embedder.figures.padding > 0


def test_fast_is_packed_where_the_device_can_and_agrees(torch: Any, model: EmbeddingModel, oracle: Vectors) -> None:
    embedder = load(model, "fast")
    able = torch.cuda.get_device_capability() >= attention.VARLEN_CAPABILITY
    assert embedder.backend.endswith("bfloat16 packed" if able else "float16 padded")
    agreement = Agreement.of(embedder.embed(TEXTS), oracle)
    assert agreement.cosine >= FAST
    assert agreement.same_nearest >= 0.98


@pytest.mark.parametrize(
    ("architecture", "way"),
    [
        ("bert", "packed"),
        ("roberta", "packed"),
        ("distilbert", "packed"),
        ("modernbert", "packed"),
        ("qwen3", "packed"),
        ("mistral-window", "packed"),
        ("mpnet", "padded"),
        ("gemma2-softcap", "padded"),
    ],
)
def test_architectures(torch: Any, architecture: str, way: str, tmp_path: Path) -> None:
    """Windows, causal masks and shared heads are the kernel's here."""
    if torch.cuda.get_device_capability() < attention.VARLEN_CAPABILITY:
        pytest.skip("the variable-length kernel needs compute capability 8.0")
    model = tiny_models.save(tmp_path, architecture, "lasttoken" if architecture == "qwen3" else "mean", weights=0.05)
    wanted = one_by_one(str(model.path), model.max_tokens)
    fast = load(model, "fast")
    assert fast.backend.endswith(f"bfloat16 {way}")
    assert Agreement.of(fast.embed(TEXTS), wanted).cosine >= FAST
    assert np.abs(load(model, "exact").embed(TEXTS) - wanted).max() <= EXACT


class Recorder:
    """The real backend; notes how many passes are in flight."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.device, self.padded = backend.device, backend.padded
        self.in_flight = self.most = 0

    def start(self, batch: Sequence[Ids]) -> Callable[[], Vectors]:
        wait = self._backend.start(batch)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)

        def result() -> Vectors:
            self.in_flight -= 1
            vectors: Vectors = wait()
            return vectors

        return result


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_two_passes_in_flight_do_not_mix(
    model: EmbeddingModel, oracle: Vectors, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small passes in quick succession: what one reads or writes must not be reused before it is done."""
    embedder = load(model, precision, budget=600)
    recorder = Recorder(embedder._backend)
    monkeypatch.setattr(embedder, "_backend", recorder)
    answers = [embedder.embed(TEXTS) for _ in range(20)]
    assert recorder.most == 2
    for answer in answers:
        agreement = Agreement.of(answer, oracle)
        assert agreement.keeps(precision)  # type: ignore[arg-type]


def test_results_stay_as_they_are_while_others_are_computed(model: EmbeddingModel, oracle: Vectors) -> None:
    embedder = load(model, "exact")
    kept = [embedder.probe([text]) for text in TEXTS]
    embedder.embed(TEXTS)
    assert np.abs(np.concatenate(kept) - oracle).max() <= EXACT


def test_stream_and_device_of_the_caller_do_not_matter(torch: Any, model: EmbeddingModel, oracle: Vectors) -> None:
    last = torch.cuda.device_count() - 1
    embedder = load(model, "exact", device=f"cuda:{last}", budget=600)
    # The current device is the first; the model may be on another.
    assert np.abs(embedder.embed(TEXTS) - oracle).max() <= EXACT
    with torch.cuda.device(last), torch.cuda.stream(torch.cuda.Stream()):
        assert np.abs(embedder.embed(TEXTS) - oracle).max() <= EXACT


@pytest.fixture
def little_memory(torch: Any) -> Iterator[Callable[[int], None]]:
    """Leaves this process so many bytes beyond what it has allocated."""

    def leave(size: int) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + size) / total)

    yield leave
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_short_memory_halves_the_budget_and_yields_the_same(
    model: EmbeddingModel, oracle: Vectors, precision: str, little_memory: Callable[[int], None]
) -> None:
    embedder = load(model, precision, budget=1 << 20)
    # Warm, so that libraries have what they keep.
    embedder.embed(TEXTS[:50])
    little_memory(48 << 20)
    agreement = Agreement.of(embedder.embed(TEXTS), oracle)
    assert agreement.keeps(precision)  # type: ignore[arg-type]
    assert embedder.figures.out_of_memory >= 1
    assert embedder.budget_tokens < 1 << 20


def test_budget_is_found_within_its_bounds(model: EmbeddingModel) -> None:
    embedder = load(model, "fast")
    embedder.warm_up()
    backend: Any = embedder._backend
    assert backend.first_budget <= embedder.budget_tokens <= backend.largest_budget
