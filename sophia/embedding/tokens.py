"""The front of the engine: texts to token ids, with the Rust tokenizer itself and without its padding.

A text that is much longer than the model sees is cut before it is tokenised, since a tokenizer reads all of it first.
The cut is in front of a space that follows a visible character: every tokenizer ends a word there, so that what is
before it has the same tokens with and without the rest. Where that is too few for the model, the whole is tokenised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from sophia.embedding.base import Ids

# Characters of a text, for each token that the model takes, behind which it is cut. English has 4 to 5.
CUT_CHARS = 16
# Texts tokenised at a time: enough to sort by length, few enough to hold.
WINDOW_TEXTS = 8_192
# Only the plain space: some tokenizers take other white space for part of a word, and runs of spaces for one token.
_END_OF_WORD = re.compile(r"(?<=\S) ")


class TextTokenizer:
    """Token ids of texts as a model wants them.

    Args:
        tokenizer: a `tokenizers.Tokenizer` without padding or truncation.
        max_tokens: most tokens of a text, specials included.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._cut_chars = CUT_CHARS * max_tokens
        # A copy, since truncation is a property of the tokenizer.
        self._tokenizer: Any = type(tokenizer).from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, cut at the model's length. Other threads run meanwhile."""
        ids = self._encode([self._cut(text) for text in texts])
        short = [i for i, text in enumerate(texts) if len(text) > self._cut_chars and len(ids[i]) < self._max_tokens]
        if short:
            for i, whole in zip(short, self._encode([texts[i] for i in short]), strict=True):
                ids[i] = whole
        return ids

    def windows(self, texts: Sequence[str]) -> Iterator[tuple[int, list[Ids]]]:
        """Windows of texts, each with the place of its first; the next is tokenised while the caller works on one."""
        if len(texts) <= WINDOW_TEXTS:
            # No thread for what is done before it had begun.
            yield 0, self.encode(texts)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as helper:
            starts = range(0, len(texts), WINDOW_TEXTS)
            coming = helper.submit(self.encode, texts[:WINDOW_TEXTS])
            for start in starts:
                ids = coming.result()
                following = start + WINDOW_TEXTS
                if following < len(texts):
                    coming = helper.submit(self.encode, texts[following : following + WINDOW_TEXTS])
                yield start, ids

    def _encode(self, texts: list[str]) -> list[Ids]:
        try:
            encodings = self._tokenizer.encode_batch_fast(texts)
        except TypeError:
            # How it says that a text is no valid Unicode.
            encodings = self._tokenizer.encode_batch_fast([_valid(text) for text in texts])
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def _cut(self, text: str) -> str:
        if len(text) <= self._cut_chars:
            return text
        end = _END_OF_WORD.search(text, self._cut_chars)
        return text if end is None else text[: end.start()]


def _valid(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs, which are left where a client cut an emoji in two."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
