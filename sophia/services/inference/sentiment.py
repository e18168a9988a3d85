"""Sentiment of texts: by the VADER lexicon, or by a text-classification model that the settings name.

The lexicon is English. It comes from nltk-vader-sentiment, since the original package takes quadratic time
(16 s for 90 kB on the machine where the other took 0.15 s) and NLTK's copy downloads its data when it runs.

A model's labels are mapped to values from -1 to 1: the score is the mean of these, weighted by probability. A text
that is longer than the model sees is judged in pieces, weighted by their tokens; nothing of it is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, Protocol

import numpy as np

from sophia.embedding.packing import pack
from sophia.errors import ConfigurationError, TemporaryError
from sophia.services.inference.text_models import TextModel, load_text_model
from sophia.settings import Settings

Label = Literal["positive", "neutral", "negative"]
LABELS: tuple[Label, ...] = ("negative", "neutral", "positive")
# VADER's own threshold between neutral and the rest.
NEUTRAL = 0.05
# Padded tokens of a forward pass.
PASS_TOKENS = 4_096
_VARIABLE = "SOPHIA_INFERENCE__SENTIMENT_MODEL"
_WORDS = {"pos": 1, "positive": 1, "neg": -1, "negative": -1, "neu": 0, "neutral": 0, "mixed": 0}
_NUMBERED = re.compile(r"(label ?)?(\d+)( ?stars?)?")
# Numbers of classes for which it is common use that unnamed labels rise from negative to positive.
_UNNAMED = (2, 3, 5)


@dataclass(frozen=True, slots=True)
class SentimentResult:
    """The sentiment of one text.

    Attributes:
        label: what the text mostly is.
        score: from -1, negative, to 1, positive.
        scores: share of each label, of the words by the lexicon and of the probability by a model; all 0 for a text
            without words.
    """

    label: Label
    score: float
    scores: dict[str, float]


class Sentiment(Protocol):
    """Judges texts. Instances may be shared by threads.

    Attributes:
        name: of the model or lexicon.
    """

    @property
    def name(self) -> str: ...

    def analyze(self, texts: Sequence[str], stopped: Callable[[], bool] = lambda: False) -> list[SentimentResult]:
        """Sentiment of each text, in the order given.

        Args:
            stopped: asked now and then. Once it is true nobody wants the results any more.

        Raises:
            TemporaryError: `stopped` said so.
        """
        ...


def load_sentiment(settings: Settings) -> Sentiment:
    """The lexicon, or the model of SOPHIA_INFERENCE__SENTIMENT_MODEL.

    Raises:
        ConfigurationError: the model cannot be loaded, or its labels say nothing of sentiment.
    """
    path = settings.inference.sentiment_model
    if path is None:
        return LexiconSentiment()
    return ModelSentiment(load_text_model("classification", path, settings, _VARIABLE))


class LexiconSentiment:
    """Implements `Sentiment` by the VADER lexicon."""

    name = "vader"

    def __init__(self) -> None:
        from vader import SentimentIntensityAnalyzer

        self._analyzer = SentimentIntensityAnalyzer()

    def analyze(self, texts: Sequence[str], stopped: Callable[[], bool] = lambda: False) -> list[SentimentResult]:
        """See `Sentiment.analyze`."""
        results = []
        for text in texts:
            _go_on(stopped)
            results.append(self._one(text))
        return results

    def _one(self, text: str) -> SentimentResult:
        found = self._analyzer.polarity_scores(text)
        score = found["compound"]
        label: Label = "positive" if score >= NEUTRAL else "negative" if score <= -NEUTRAL else "neutral"
        return SentimentResult(
            label, score, {"negative": found["neg"], "neutral": found["neu"], "positive": found["pos"]}
        )


class ModelSentiment:
    """Implements `Sentiment` by a text-classification model.

    Raises:
        ConfigurationError: the model's labels say nothing of sentiment.
    """

    def __init__(self, loaded: TextModel) -> None:
        config = loaded.model.config
        if config.problem_type == "multi_label_classification":
            raise ConfigurationError(f"{_VARIABLE}: {loaded.name!r} gives each label a probability of its own")
        values = label_values(config.id2label)
        self.name = loaded.name
        self._loaded = loaded
        self._values = np.array([values[i] for i in sorted(values)])
        self._sides = [LABELS.index(_side(values[i])) for i in sorted(values)]
        # The tokenizer's truncation is a property of it, which two threads cannot set at once.
        self._lock = Lock()

    def analyze(self, texts: Sequence[str], stopped: Callable[[], bool] = lambda: False) -> list[SentimentResult]:
        """See `Sentiment.analyze`."""
        if not texts:
            return []
        with self._lock:
            pieces = self._loaded.tokenizer(
                list(texts), truncation=True, max_length=self._loaded.length, return_overflowing_tokens=True
            )
            owners = pieces.pop("overflow_to_sample_mapping")
            lengths = [len(ids) for ids in pieces["input_ids"]]
            probabilities = np.zeros((len(lengths), len(self._values)))
            for places in pack(lengths, lambda: PASS_TOKENS, lambda: _go_on(stopped)):
                # A model may not be asked with a text of no tokens.
                places = [i for i in places if lengths[i]]
                if places:
                    probabilities[places] = self._probabilities(
                        {key: [pieces[key][i] for i in places] for key in pieces}
                    )
        sums = np.zeros((len(texts), len(self._values)))
        np.add.at(sums, owners, probabilities * np.array(lengths)[:, None])
        return [self._result(row / (row.sum() or 1.0)) for row in sums]

    def _probabilities(self, batch: Mapping[str, list[list[int]]]) -> Any:
        import torch

        padded = self._loaded.tokenizer.pad(batch, return_tensors="pt").to(self._loaded.model.device)
        with torch.inference_mode():
            logits = self._loaded.model(**padded).logits
        return torch.softmax(logits.float(), dim=-1).cpu().numpy()

    def _result(self, probabilities: Any) -> SentimentResult:
        shares = np.bincount(self._sides, weights=probabilities, minlength=len(LABELS))
        score = float(np.clip(probabilities @ self._values, -1, 1))
        scores: dict[str, float] = {label: float(share) for label, share in zip(LABELS, shares, strict=True)}
        label = LABELS[int(shares.argmax())] if shares.any() else "neutral"
        return SentimentResult(label, score, scores)


def _go_on(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise TemporaryError("the analysis was given up before it was done")


def label_values(labels: Mapping[int, str]) -> dict[int, float]:
    """The value of each class of a model, from -1 (negative) to 1 (positive), by what its label says.

    Known are words (`positive`, `NEG`, `neutral`, `very negative`), stars (`1 star` to `5 stars`) and unnamed
    numbers (`LABEL_0` …) of two, three or five classes, which rise from negative to positive.

    Raises:
        ConfigurationError: it cannot be told what the labels mean.
    """
    plain = {i: " ".join(re.split(r"[\s_-]+", label.strip().lower())) for i, label in labels.items()}
    values = _by_words(plain) or _by_numbers(plain)
    if values is None or min(values.values()) >= 0 or max(values.values()) <= 0:
        raise ConfigurationError(
            f"{_VARIABLE}: the labels {sorted(labels.values())} do not say what is positive and what is negative; "
            "name a model whose labels are positive, neutral and negative, or stars"
        )
    return values


def _by_words(labels: Mapping[int, str]) -> dict[int, float] | None:
    graded = any(label.startswith("very ") for label in labels.values())
    values: dict[int, float] = {}
    for i, label in labels.items():
        very, word = label.startswith("very "), label.removeprefix("very ")
        if word not in _WORDS:
            return None
        values[i] = _WORDS[word] * (0.5 if graded and not very else 1.0)
    return values


def _by_numbers(labels: Mapping[int, str]) -> dict[int, float] | None:
    matches = {i: _NUMBERED.fullmatch(label) for i, label in labels.items()}
    numbers = {i: int(match[2]) for i, match in matches.items() if match}
    count, first = len(labels), min(numbers.values(), default=0)
    if count < 2 or sorted(numbers.values()) != list(range(first, first + count)):
        return None
    stars = first == 1 and all(match and not match[1] for match in matches.values())
    if not stars and (first != 0 or count not in _UNNAMED):
        return None
    return {i: 2 * (number - first) / (count - 1) - 1 for i, number in numbers.items()}


def _side(value: float) -> Label:
    return "positive" if value > 0 else "negative" if value < 0 else "neutral"
