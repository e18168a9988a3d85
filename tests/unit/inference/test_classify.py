"""Zero-shot classification, measured with MiniLM on sixty sentences of five topics."""

from __future__ import annotations

import numpy as np
import pytest

from sophia.catalog import load
from sophia.catalog.loader import default_path
from sophia.embedding import load_embedder
from sophia.embedding.base import Embedder, Vectors
from sophia.services.inference.classify import classify, hypothesis
from sophia.settings import load_settings

SENTENCES = {
    "sport": (
        "The striker scored twice in the second half.",
        "She won the marathon in just over two hours.",
        "The coach blamed the referee for the defeat.",
        "Our team lost the final on penalties.",
        "He broke the record in the 200 metres butterfly.",
        "The tennis match was stopped by rain in the third set.",
        "Fans filled the stadium long before kick-off.",
        "The goalkeeper signed a contract until 2030.",
        "The cyclist crashed on the last descent of the stage.",
        "They trained hard for the rowing championship.",
        "The league was decided on the last day of the season.",
        "A hamstring injury keeps him out for six weeks.",
    ),
    "politics": (
        "Parliament passed the budget by a narrow majority.",
        "The senator announced that she will not run again.",
        "Voters go to the polls next Sunday.",
        "The prime minister reshuffled his cabinet.",
        "The two governments signed a treaty on borders.",
        "The opposition called for a vote of no confidence.",
        "A new law limits donations to parties.",
        "The mayor defended the housing policy in a debate.",
        "Diplomats met in Geneva to end the conflict.",
        "The president vetoed the bill on immigration.",
        "Exit polls point to a coalition of three parties.",
        "The court declared the referendum invalid.",
    ),
    "technology": (
        "The new phone has a faster processor and a better camera.",
        "A bug in the driver crashes the operating system.",
        "The start-up trains language models on its own chips.",
        "Developers complained about the breaking change in the library.",
        "The update fixes a security hole in the browser.",
        "Their database replicates every write to three servers.",
        "The robot learned to fold laundry from videos.",
        "Quantum computers need very low temperatures to work.",
        "The laptop's battery lasts two days.",
        "Open-source software runs most of the web.",
        "The programmer wrote the compiler in a weekend.",
        "Hackers stole passwords from the cloud provider.",
    ),
    "food": (
        "Simmer the sauce until it thickens.",
        "The restaurant serves the best ramen in town.",
        "Add a pinch of salt and two cloves of garlic.",
        "The bread was still warm from the oven.",
        "This cheese goes well with a dry white wine.",
        "She baked a chocolate cake for the birthday.",
        "The soup needs more pepper and a little cream.",
        "Grill the fish for five minutes on each side.",
        "Breakfast was scrambled eggs with toast.",
        "The chef uses only vegetables from his garden.",
        "We ordered two pizzas and a salad.",
        "Let the dough rise overnight in the fridge.",
    ),
    "health": (
        "The doctor prescribed antibiotics for the infection.",
        "Regular exercise lowers blood pressure.",
        "The vaccine protects against three strains of the virus.",
        "She has had a headache and a fever since Monday.",
        "The surgeon replaced his knee last week.",
        "Too little sleep weakens the immune system.",
        "The hospital opened a new cancer ward.",
        "Patients reported fewer side effects in the trial.",
        "He takes insulin for his diabetes.",
        "The nurse measured her pulse and temperature.",
        "Smoking is the main cause of lung disease.",
        "Therapy helped him to overcome his anxiety.",
    ),
}
LABELS = tuple(SENTENCES)
TEXTS = [text for texts in SENTENCES.values() for text in texts]
RIGHT = np.repeat(np.arange(len(LABELS)), [len(texts) for texts in SENTENCES.values()])


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    (model,) = (model for model in load(default_path()).models if model.name == "minilm")
    return load_embedder(model, "exact", load_settings(device="cpu"))


@pytest.fixture(scope="module")
def vectors(minilm: Embedder) -> Vectors:
    return minilm.embed(TEXTS)


def test_minilm_finds_the_topic(minilm: Embedder, vectors: Vectors) -> None:
    """59 of 60 when this was written; chance is 12."""
    probabilities = classify(vectors, minilm.embed([hypothesis(label) for label in LABELS]))
    right = probabilities.argmax(axis=1) == RIGHT
    assert right.sum() >= 57
    # Neither over-confident nor timid: what the temperature was chosen for.
    confidence = probabilities.max(axis=1).mean()
    assert right.mean() - 0.10 <= confidence <= right.mean()


def test_the_template_helps(minilm: Embedder, vectors: Vectors) -> None:
    plain = classify(vectors, minilm.embed(LABELS)).argmax(axis=1) == RIGHT
    templated = classify(vectors, minilm.embed([hypothesis(label) for label in LABELS])).argmax(axis=1) == RIGHT
    assert templated.sum() > plain.sum()


def test_probabilities_follow_the_cosines() -> None:
    texts = np.eye(3, dtype=np.float32)
    labels = np.array([[1, 0, 0], [0.6, 0.8, 0]], dtype=np.float32)
    probabilities = classify(texts, labels, temperature=0.5)
    assert probabilities.shape == (3, 2)
    assert probabilities.dtype == np.float32
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-6)
    odds = np.exp(np.array([0.4, -0.8, 0.0]) / 0.5)
    assert probabilities[:, 0] / probabilities[:, 1] == pytest.approx(odds, rel=1e-4)


def test_a_low_temperature_does_not_overflow() -> None:
    probabilities = classify(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), temperature=1e-6)
    assert probabilities.tolist() == [[1, 0], [0, 1]]


def test_no_texts_have_no_probabilities() -> None:
    assert classify(np.zeros((0, 3), dtype=np.float32), np.eye(3, dtype=np.float32)).shape == (0, 3)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("It is {}.", "It is a{b}c."),
        ("{label}!", "a{b}c!"),
        ("{{}} {}", "{} a{b}c"),
        ("{}", "a{b}c"),
    ],
)
def test_hypothesis_puts_the_label_in_as_it_is(template: str, expected: str) -> None:
    assert hypothesis("a{b}c", template) == expected


@pytest.mark.parametrize(
    "template",
    [
        "",
        "no place",
        "{} {}",
        "{} {label}",
        "{0}",
        "{topic}",
        "{label.upper}",
        "{!r}",
        "{:>9}",
        "{",
        "}",
        "{label",
        "{{}}",
    ],
)
def test_other_templates_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match="template"):
        hypothesis("a", template)
