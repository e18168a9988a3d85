"""Sentences, the choice of those that say most, and summaries that a model writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sophia.embedding.base import Vectors
from sophia.errors import ConfigurationError, SophiaError, TemporaryError
from sophia.services.inference.summarize import (
    LONGEST_CHARS,
    AbstractiveSummarizer,
    extract,
    load_summarizer,
    sentences,
)
from sophia.settings import InferenceSettings, load_settings
from tests.text_models import CHAT_TEMPLATE, TEXTS, save_causal, save_classifier, save_seq2seq

LONG = "\n\n".join(" ".join(TEXTS) for _ in range(6))


def _bare(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith left at 3 p.m. on Jan. 5. Was it cold? Yes!", 3),
        ('He said "Stop. Now." Then he left.', 2),
        ("A title\n\nA paragraph. Another one.", 3),
        ("これは文です。次の文です！", 2),
        ("שלום עולם. מה שלומך?", 2),
        ("v1.2.3 is out, see http://a.b/c?d=1.5 now", 1),
        ("", 0),
        (" \n\t ", 0),
        ("one", 1),
    ],
)
def test_sentences_end_where_people_end_them(text: str, expected: int) -> None:
    found = sentences(text)
    assert len(found) == expected
    assert _bare("".join(found)) == _bare(text)


@given(st.text(st.sampled_from("ab .!?\n\"'()。\u202e\x00\U0001f60d\r1-"), max_size=300) | st.text(max_size=200))
def test_no_character_is_lost(text: str) -> None:
    found = sentences(text)
    assert _bare("".join(found)) == _bare(text)
    assert all(0 < len(sentence) <= LONGEST_CHARS and sentence == sentence.strip() for sentence in found)


@pytest.mark.parametrize("text", ["word " * 1_000, "x" * 5_000, "- item\n" * 1_000, "\U0001f60d" * 2_000])
def test_long_lines_without_punctuation_are_cut(text: str) -> None:
    found = sentences(text)
    assert len(found) > 2
    assert max(len(sentence) for sentence in found) <= LONGEST_CHARS
    assert _bare("".join(found)) == _bare(text)
    assert all(sentence in text for sentence in found)


def _unit(rows: list[list[float]]) -> Vectors:
    vectors = np.array(rows, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# Four sentences on one subject of which two are nearly the same, two on another, one on a third.
VECTORS = _unit([[0, 0, 1], [1, 0.1, 0], [0.2, 1, 0], [1, 0.12, 0], [0.9, 0.6, 0.1], [0.1, 1, 0.6], [0.8, -0.4, 0]])
NAMES = list("abcdefg")


def test_the_most_central_sentence_comes_first() -> None:
    central = int((VECTORS @ VECTORS.mean(axis=0)).argmax())
    assert extract(NAMES, VECTORS, 1) == [central]


def test_places_are_in_the_order_of_the_text() -> None:
    """In the order of their worth they would not be."""
    steps = [extract(NAMES, VECTORS, count) for count in range(1, 6)]
    taken = [next(iter(set(after) - set(before))) for before, after in zip([[], *steps], steps, strict=False)]
    assert taken != sorted(taken)
    assert steps[-1] == sorted(taken)


def test_what_was_said_is_not_said_again() -> None:
    chosen = extract(NAMES, VECTORS, len(NAMES))
    assert len({1, 3} & set(chosen)) == 1
    assert len(chosen) == len(NAMES) - 1


def test_a_subject_more_is_worth_more_than_the_same_again() -> None:
    """Without the likeness to what was taken, both would be of the first subject."""
    vectors = _unit([[1, 0.45, 0], [1, 0.35, 0.35], [0.5, 1, 0]])
    central = np.argsort(-(vectors @ vectors.mean(axis=0)))
    assert set(central[:2]) != set(extract(list("abc"), vectors, 2))


def test_equal_sentences_are_taken_once_whatever_their_vectors() -> None:
    """A refused text has a vector of zeros."""
    vectors = np.zeros((3, 3), dtype=np.float32)
    assert extract(["a", "b", "a"], vectors, 3) == [0, 1]


def test_the_first_of_equally_good_ones_is_taken() -> None:
    noise = np.random.default_rng(0).normal(0, 1e-7, (6, 3)).astype(np.float32)
    for row in range(6):
        assert extract(list("abcdef"), np.ones((6, 3), dtype=np.float32) / np.sqrt(3) + np.roll(noise, row), 2) == [0]


def test_nothing_to_choose_from() -> None:
    assert extract([], np.zeros((0, 3), dtype=np.float32), 2) == []


@pytest.mark.parametrize(("count", "rows"), [(0, 7), (-1, 7), (1, 6)])
def test_wrong_arguments_are_refused(count: int, rows: int) -> None:
    with pytest.raises(ValueError, match=r"at least 1|vectors"):
        extract(NAMES, VECTORS[:rows], count)


def _load(path: str) -> AbstractiveSummarizer:
    found = load_summarizer(load_settings(device="cpu", inference=InferenceSettings(summary_model=path)))
    assert found is not None
    return found


@pytest.fixture(scope="module", params=["seq2seq", "causal", "chat"])
def summarizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AbstractiveSummarizer:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "seq2seq":
        return _load(save_seq2seq(folder, 64))
    return _load(save_causal(folder, 512, CHAT_TEMPLATE) if request.param == "chat" else save_causal(folder))


class _Asked:
    """Stands before the model's `generate` and notes what it was asked with, as texts, and how long it may write."""

    def __init__(self, summarizer: AbstractiveSummarizer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lengths: list[int] = []
        self.texts: list[str] = []
        self.limits: list[int] = []
        model: Any = summarizer._model
        generate = model.generate

        def noting(ids: Any, **options: Any) -> Any:
            self.lengths.append(len(ids[0]))
            self.texts.append(summarizer._tokenizer.decode(ids[0], skip_special_tokens=True))
            self.limits.append(options["max_new_tokens"])
            return generate(ids, **options)

        monkeypatch.setattr(model, "generate", noting)


def test_a_short_text_is_summarised_at_once(summarizer: AbstractiveSummarizer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _Asked(summarizer, monkeypatch)
    summary = summarizer.summarize(TEXTS[0], 8)
    assert len(asked.texts) == 1
    assert TEXTS[0] in asked.texts[0]
    assert 0 < len(summarizer._tokenizer(summary)["input_ids"]) <= 9
    assert summarizer.summarize(TEXTS[0], 8) == summary


def test_all_of_a_long_text_is_read(summarizer: AbstractiveSummarizer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _Asked(summarizer, monkeypatch)
    text = LONG + " at the end"
    summarizer.summarize(text, 8)
    length = summarizer._tokenizer.model_max_length
    written = asked.limits if summarizer._causal else [0] * len(asked.limits)
    assert all(tokens + limit <= length for tokens, limit in zip(asked.lengths, written, strict=True))
    assert len(asked.texts) > 2
    pieces = summarizer._pieces(text)
    assert _bare("".join(pieces)) == _bare(text)
    assert all(_bare(piece) in _bare(read) for piece, read in zip(pieces, asked.texts, strict=False))
    assert asked.limits[-1] == 8
    assert all(limit > 8 for limit in asked.limits[:-1])


def test_nothing_is_summarised_as_nothing(summarizer: AbstractiveSummarizer) -> None:
    assert summarizer.summarize(" \n ", 8) == ""


def test_a_summary_that_nobody_wants_is_given_up(
    summarizer: AbstractiveSummarizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _Asked(summarizer, monkeypatch)
    with pytest.raises(TemporaryError, match="given up"):
        summarizer.summarize(LONG, 8, stopped=lambda: True)
    assert len(asked.texts) == 1


def test_summaries_that_do_not_become_shorter_are_an_error(
    summarizer: AbstractiveSummarizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summarizer, "_write", lambda piece, limit, stopped: piece + " " + piece)
    with pytest.raises(SophiaError, match="do not become shorter"):
        summarizer.summarize(LONG, 8)


def test_a_prefix_that_the_model_was_trained_with_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_seq2seq(tmp_path)
    config = tmp_path / "config.json"
    params = '"task_specific_params": {"summarization": {"prefix": "summary: "}},'
    config.write_text(config.read_text().replace("{", "{" + params, 1))
    summarizer = _load(path)
    asked = _Asked(summarizer, monkeypatch)
    summarizer.summarize(TEXTS[0], 8)
    assert asked.texts == [f"summary: {TEXTS[0]}"]


def test_without_a_model_there_is_no_summarizer() -> None:
    assert load_summarizer(load_settings()) is None


def test_a_model_that_cannot_summarise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="SOPHIA_INFERENCE__SUMMARY_MODEL"):
        _load(save_classifier(tmp_path, ["a", "b"]))


def test_a_model_that_sees_too_little_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="sees only 16 tokens"):
        _load(save_seq2seq(tmp_path, 16))
