"""Summaries: the sentences of a text that say most of it, or a text that a model writes.

Extractive is the default and needs only the embedding engine: sentences, their vectors, and a choice that is central
and not redundant. Abstractive summaries come from the model of SOPHIA_INFERENCE__SUMMARY_MODEL; a text that is longer
than it sees is summarised in pieces, and these summaries again, so that nothing is cut off unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np

from sophia.embedding.base import Vectors
from sophia.errors import ConfigurationError, SophiaError, TemporaryError
from sophia.services.inference.text_models import TextModel, load_text_model, padding_id
from sophia.settings import Settings

# The abbreviations that end no sentence are those of English; the full stops of other scripts are known all the same.
LANGUAGE = "en"
# A longer sentence is cut: it is a list or has no punctuation, and the embedding model would not see all of it.
LONGEST_CHARS = 600
# Weight of being central against being unlike what was chosen before.
CENTRALITY = 0.7
# Cosine from which on a sentence says the same as one that was chosen before.
SAME = 0.95
# Vectors of equal sentences differ in the last digits with the batch that they were computed in.
_DIGITS = 5
_VARIABLE = "SOPHIA_INFERENCE__SUMMARY_MODEL"
_INSTRUCTION = "Summarize the following text in at most {words} words. Answer with the summary only.\n\n{text}"
# What makes a language model without a chat template summarise (GPT-2's paper).
_CUE = "\n\nTL;DR:"
# Words of a token of English text.
_WORDS_PER_TOKEN = 0.75
# The summary of a piece has at most this share of what the model sees: the summaries of two pieces fit into one.
_SHARE = 4
# Tokens kept free, since a piece may have some more beside other text than by itself.
_MARGIN = 8


def sentences(text: str) -> list[str]:
    """Sentences of a text, in order and without the white space around them; all characters but white space are kept.

    A sentence of more than `LONGEST_CHARS` characters is cut, at the end of a line or between two words where it can.
    """
    import sentencex
    from semantic_text_splitter import TextSplitter

    splitter: Any = TextSplitter(LONGEST_CHARS)
    found: list[str] = []
    for segment in sentencex.segment(LANGUAGE, text):
        sentence = segment.strip()
        if len(sentence) <= LONGEST_CHARS:
            found += [sentence] if sentence else []
        else:
            found += splitter.chunks(sentence)
    return found


def extract(sentences: list[str], vectors: Vectors, max_sentences: int) -> list[int]:
    """Places of the sentences that say most, in the order of the text.

    One after the other the sentence is taken that is nearest to the mean of all and least like those that were taken
    (maximal marginal relevance; Carbonell and Goldstein 1998); one that equals an earlier one, in its characters or by
    a cosine of `SAME`, is never taken. Of equally good ones the first is taken, so the choice depends on nothing else.

    Args:
        vectors: shape (sentences, dimension), unit vectors.
        max_sentences: fewer are returned where the others would only repeat.

    Raises:
        ValueError: `max_sentences` is below 1, or there is not one vector a sentence.
    """
    if max_sentences < 1:
        raise ValueError("max_sentences must be at least 1")
    if len(sentences) != len(vectors):
        raise ValueError(f"{len(sentences)} sentences, but {len(vectors)} vectors")
    if not sentences:
        return []
    mean = vectors.mean(axis=0, dtype=np.float64)
    central = vectors @ (mean / (np.linalg.norm(mean) or 1.0))
    nearest = np.zeros(len(sentences))
    free = np.ones(len(sentences), dtype=bool)
    texts = np.array(sentences, dtype=object)
    chosen: list[int] = []
    while free.any() and len(chosen) < max_sentences:
        worth = np.round(CENTRALITY * central - (1 - CENTRALITY) * nearest, _DIGITS)
        best = int(np.argmax(np.where(free, worth, -np.inf)))
        chosen.append(best)
        likeness = vectors @ vectors[best]
        nearest = np.maximum(nearest, likeness)
        free &= (likeness < SAME) & (texts != sentences[best])
    return sorted(chosen)


def load_summarizer(settings: Settings) -> AbstractiveSummarizer | None:
    """The model of SOPHIA_INFERENCE__SUMMARY_MODEL, or None if that is unset.

    Raises:
        ConfigurationError: the model cannot be loaded.
    """
    path = settings.inference.summary_model
    return None if path is None else AbstractiveSummarizer(load_text_model("summary", path, settings, _VARIABLE))


def _never() -> bool:
    return False


class AbstractiveSummarizer:
    """Writes summaries with an encoder-decoder or a causal language model. One is written at a time.

    Attributes:
        name: of the model.
    """

    def __init__(self, loaded: TextModel) -> None:
        self.name = loaded.name
        self._model: Any = loaded.model
        self._tokenizer: Any = loaded.tokenizer
        config = loaded.model.config
        self._causal = not config.is_encoder_decoder
        tasks = getattr(config, "task_specific_params", None) or {}
        self._prefix: str = tasks.get("summarization", {}).get("prefix", "")
        self._longest = loaded.length // _SHARE
        room = loaded.length - len(self._ids("", self._longest)) - _MARGIN
        self._room = room - self._longest if self._causal else room
        if self._room <= 2 * self._longest:
            raise ConfigurationError(
                f"{_VARIABLE}: {self.name!r} sees only {loaded.length} tokens at once; name a model that sees more"
            )
        self._lock = Lock()

    def summarize(self, text: str, max_tokens: int, stopped: Callable[[], bool] = _never) -> str:
        """A summary of at most `max_tokens` tokens, and of at most a quarter of what the model sees at once.

        Args:
            stopped: asked before each token. Once it is true nobody wants the summary any more.

        Raises:
            TemporaryError: `stopped` said so.
            SophiaError: the model's summaries of a long text do not become shorter.
        """
        with self._lock:
            pieces = self._pieces(text)
            while len(pieces) > 1:
                written = "\n".join(self._write(piece, self._longest, stopped) for piece in pieces)
                shorter = self._pieces(written)
                if len(shorter) >= len(pieces):
                    raise SophiaError(
                        f"{_VARIABLE}: the summaries that {self.name!r} writes do not become shorter; "
                        "name a model that was trained to summarise"
                    )
                pieces = shorter
            return self._write(pieces[0], min(max_tokens, self._longest), stopped) if pieces else ""

    def _pieces(self, text: str) -> list[str]:
        """The whole text in pieces that the model sees at once, cut between paragraphs, sentences or words."""
        from semantic_text_splitter import TextSplitter

        splitter: Any = TextSplitter.from_callback(self._count, self._room)
        return list(splitter.chunks(text))

    def _count(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _ids(self, text: str, limit: int) -> Any:
        """Token ids of what the model is asked with."""
        if not self._causal:
            return self._tokenizer(self._prefix + text, verbose=False)["input_ids"]
        if self._tokenizer.chat_template is None:
            return self._tokenizer(text + _CUE, verbose=False)["input_ids"]
        asked = _INSTRUCTION.format(words=max(1, int(limit * _WORDS_PER_TOKEN)), text=text)
        messages = [{"role": "user", "content": asked}]
        return self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    def _write(self, piece: str, limit: int, stopped: Callable[[], bool]) -> str:
        import torch
        from transformers import StoppingCriteriaList

        ids = torch.tensor([self._ids(piece, limit)], device=self._model.device)

        def halt(rows: Any, _scores: Any) -> Any:
            return torch.full((len(rows),), stopped(), device=ids.device)

        with torch.inference_mode():
            written = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                # The model's own least length may be more than was asked for.
                min_length=0,
                do_sample=False,
                pad_token_id=padding_id(self._tokenizer),
                stopping_criteria=StoppingCriteriaList([halt]),
            )[0]
        if stopped():
            raise TemporaryError("the summary was given up before it was written")
        answer = written[len(ids[0]) :] if self._causal else written
        return str(self._tokenizer.decode(answer, skip_special_tokens=True)).strip()
