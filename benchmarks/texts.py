"""Texts of every length, the same on every machine: docstrings of the standard library and of installed packages."""

from __future__ import annotations

import importlib
import random
import re
import sys
from collections.abc import Sequence
from typing import Any

# Shares of a mixed corpus by length in tokens, specials included: a quarter each.
BANDS = ((5, 20), (21, 60), (61, 130), (131, 300))
# Importing these opens windows or browsers, prints, or takes seconds.
SKIPPED = {"antigravity", "idlelib", "this", "turtle", "turtledemo", "test"}


def docstrings() -> list[str]:
    """Docstrings and their paragraphs, without repeats, in an order that does not depend on the machine."""
    found: set[str] = set()
    for name in sorted(sys.stdlib_module_names - SKIPPED):
        if name.startswith("_"):
            continue
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        for value in vars(module).values():
            doc = getattr(value, "__doc__", None)
            if isinstance(doc, str):
                found.update(" ".join(part.split()) for part in (doc, *re.split(r"\n\s*\n", doc)))
    texts = sorted(text for text in found if len(text) > 10)
    random.Random(0).shuffle(texts)  # noqa: S311
    return texts


def mixed(tokenizer: Any, number: int) -> list[str]:
    """Texts of 5 to 300 tokens, a quarter of each band, interleaved.

    Args:
        tokenizer: a `tokenizers.Tokenizer` without truncation.
    """
    bands: list[list[str]] = [[] for _ in BANDS]
    each = number // len(BANDS)
    for text in docstrings():
        tokens = len(tokenizer.encode(text).ids)
        for band, (low, high) in zip(bands, BANDS, strict=True):
            if low <= tokens <= high and len(band) < each:
                band.append(text)
        if all(len(band) == each for band in bands):
            break
    return [text for group in zip(*bands, strict=False) for text in group]


def of_length(tokenizer: Any, tokens: int, number: int) -> list[str]:
    """Texts of about so many tokens, specials included, cut from the corpus; all different, by the number in front.

    Decoded and encoded again a piece may have a few tokens more or less: count them with `tokens_of`.
    """
    whole = tokenizer.encode(" ".join(docstrings()), add_special_tokens=False)
    specials = len(tokenizer.encode("").ids)
    width = tokens - specials
    texts: list[str] = []
    start = 0
    while len(texts) < number:
        first, last = start % (len(whole.ids) - width), start % (len(whole.ids) - width) + width
        text = tokenizer.decode(whole.ids[first:last])
        texts.append(f"{len(texts)} {text}")
        start += width
    return texts


def tokens_of(tokenizer: Any, texts: Sequence[str], longest: int) -> int:
    """Tokens that a model of this length computes for the texts, specials included."""
    return sum(min(longest, len(encoding.ids)) for encoding in tokenizer.encode_batch_fast(list(texts)))
