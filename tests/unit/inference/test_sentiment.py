"""Sentiment by the lexicon and by text-classification models of all the ways to name labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from sophia.errors import ConfigurationError, TemporaryError
from sophia.services.inference.sentiment import LABELS, Sentiment, SentimentResult, label_values, load_sentiment
from sophia.settings import InferenceSettings, load_settings
from tests.text_models import save_causal, save_classifier

LONG = "the food was good and the price was fair " * 40


def _model(path: str) -> Sentiment:
    return load_sentiment(load_settings(device="cpu", inference=InferenceSettings(sentiment_model=path)))


@pytest.fixture(scope="module")
def lexicon() -> Sentiment:
    return load_sentiment(load_settings())


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("I love it, this is wonderful!", "positive"),
        ("Not bad at all :)", "positive"),
        ("\U0001f60d", "positive"),
        ("This is terrible, I hate it.", "negative"),
        ("The service was not good.", "negative"),
        ("The table has four legs.", "neutral"),
        ("", "neutral"),
        (" \n\x00", "neutral"),
        ("\u202eשלום", "neutral"),
    ],
)
def test_lexicon_knows_what_is_meant(lexicon: Sentiment, text: str, label: str) -> None:
    (result,) = lexicon.analyze([text])
    assert result.label == label
    assert (result.score > 0, result.score < 0) == (label == "positive", label == "negative")
    assert set(result.scores) == set(LABELS)


def test_lexicon_keeps_the_order(lexicon: Sentiment) -> None:
    results = lexicon.analyze(["good", "bad", "table", "good"])
    assert [result.label for result in results] == ["positive", "negative", "neutral", "positive"]
    assert lexicon.analyze([]) == []


@pytest.mark.parametrize("by", ["lexicon", "model"])
def test_an_analysis_that_nobody_wants_is_given_up(by: str, tmp_path: Path, lexicon: Sentiment) -> None:
    sentiment = lexicon
    if by == "model":
        sentiment = _model(save_classifier(tmp_path, ["negative", "positive"], [0.0, 1.0]))
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return True

    # As many as do not fit into one pass of the model.
    with pytest.raises(TemporaryError, match="given up"):
        sentiment.analyze(["word " * 200] * 100, stopped)
    assert asked == 1


def test_lexicon_reads_a_long_text_to_its_end(lexicon: Sentiment) -> None:
    """The original package needs minutes for this one."""
    (result,) = lexicon.analyze(["table " * 30_000 + "good " * 20_000])
    assert result.label == "positive"


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (["NEGATIVE", "POSITIVE"], [-1, 1]),
        (["positive", "neutral", "negative"], [1, 0, -1]),
        (["POS", "NEG", "NEU"], [1, -1, 0]),
        (["LABEL_0", "LABEL_1"], [-1, 1]),
        (["LABEL_0", "LABEL_1", "LABEL_2"], [-1, 0, 1]),
        (["1 star", "2 stars", "3 stars", "4 stars", "5 stars"], [-1, -0.5, 0, 0.5, 1]),
        (["5", "4", "3", "2", "1"], [1, 0.5, 0, -0.5, -1]),
        (["Very Negative", "Negative", "Neutral", "Positive", "Very_Positive"], [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_labels_are_mapped(labels: list[str], values: list[float]) -> None:
    assert [label_values(dict(enumerate(labels)))[i] for i in range(len(labels))] == values


@pytest.mark.parametrize(
    "labels",
    [
        ["joy", "anger"],
        ["positive"],
        ["positive", "neutral"],
        ["positive", "other"],
        ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"],
        ["LABEL_1", "LABEL_2"],
        ["LABEL_0"],
        ["1 star", "3 stars"],
        ["0 stars", "1 star"][:1],
        [],
    ],
)
def test_labels_that_say_nothing_of_sentiment_are_named(labels: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="SOPHIA_INFERENCE__SENTIMENT_MODEL") as caught:
        label_values(dict(enumerate(labels)))
    assert all(label in str(caught.value) for label in labels)


def test_model_answers_by_its_labels(tmp_path: Path) -> None:
    """exp(2) : exp(1) : exp(0) are 0.665, 0.245 and 0.090."""
    path = save_classifier(tmp_path / "reviews", ["NEU", "POS", "NEG"], [1.0, 2.0, 0.0])
    sentiment = _model(path)
    (result,) = sentiment.analyze(["the food was good"])
    assert sentiment.name == "reviews"
    assert result.label == "positive"
    assert result.scores == pytest.approx({"positive": 0.665, "neutral": 0.245, "negative": 0.090}, abs=1e-3)
    assert result.score == pytest.approx(0.575, abs=1e-3)


def test_stars_are_summed_by_side(tmp_path: Path) -> None:
    """Two middling classes outweigh the likeliest single one."""
    labels = [f"{stars} star{'s' * (stars > 1)}" for stars in range(1, 6)]
    (result,) = _model(save_classifier(tmp_path, labels, [2.0, 1.9, -9.0, 2.1, -9.0])).analyze(["so"])
    assert result.label == "negative"
    assert result.score == pytest.approx((-1.0 * 7.389 - 0.5 * 6.686 + 0.5 * 8.166) / 22.241, abs=1e-3)


def test_texts_do_not_change_each_other(tmp_path: Path) -> None:
    sentiment = _model(save_classifier(tmp_path, ["negative", "positive"]))
    texts = ["the quick fox", LONG, "", "price", "she sells sea shells " * 9, "\U0001f60d \x00 \u202e"] * 3
    together = sentiment.analyze(texts)
    for text, result in zip(texts, together, strict=True):
        (alone,) = sentiment.analyze([text])
        assert result.scores == pytest.approx(alone.scores, abs=1e-5)
    assert len({round(result.score, 3) for result in together}) > 3
    assert sentiment.analyze([]) == []
    assert together[2] == SentimentResult("neutral", 0.0, {"negative": 0.0, "neutral": 0.0, "positive": 0.0})


def test_the_end_of_an_over_long_text_counts(tmp_path: Path) -> None:
    sentiment = _model(save_classifier(tmp_path, ["negative", "positive"]))
    one, other = sentiment.analyze([LONG + "slow", LONG + "she sells sea shells by the sea shore"])
    assert one.score != pytest.approx(other.score, abs=1e-6)


def test_a_model_of_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"SENTIMENT_MODEL.*no weights for classification"):
        _model(save_causal(tmp_path))


def test_a_model_of_emotions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"anger.*joy"):
        _model(save_classifier(tmp_path, ["joy", "anger"]))


def test_nothing_is_downloaded_unless_allowed() -> None:
    with pytest.raises(ConfigurationError, match="SOPHIA_HUB"):
        _model("somebody/no-such-model")
