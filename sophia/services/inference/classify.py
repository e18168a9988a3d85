"""Zero-shot classification: a text belongs to the label whose sentence its vector is nearest to.

Template and temperature were chosen by measurement, with MiniLM on sixty sentences of five topics (twelve each, in
tests/unit/inference/test_classify.py; chance is 0.20):

============================  =====  ============================================
template                      right  mean log loss at temperature 0.05, 0.02, 0.01
============================  =====  ============================================
``{}``                        0.90   0.37, 0.21, 0.25
``This text is about {}.``    0.97   0.24, 0.08, 0.06
``{} news``                   0.98   0.32, 0.08, 0.04
``This is a text about {}.``  0.98   0.25, 0.08, 0.05
============================  =====  ============================================

At 0.02 the mean probability of the chosen label is 0.94 and so a little below the share that is right; at 0.01 it
leaves no room for texts that are harder than these.
"""

from __future__ import annotations

import string

import numpy as np

from sophia.embedding.base import Vectors

TEMPLATE = "This is a text about {}."
TEMPERATURE = 0.02
_PLACES = ("", "label")


def hypothesis(label: str, template: str = TEMPLATE) -> str:
    """The sentence that stands for a label.

    Args:
        template: with one place for the label, `{}` or `{label}`; a literal brace is doubled.

    Raises:
        ValueError: the template has no such place, several, or another.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"the template is malformed: {error}; a literal brace is doubled") from None
    places = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    if len(places) != 1 or places[0] not in [(name, "", None) for name in _PLACES]:
        raise ValueError("the template needs exactly one place for the label, written {} or {label}")
    return "".join(literal + (label if name is not None else "") for literal, name, _, _ in parts)


def classify(text_vectors: Vectors, label_vectors: Vectors, temperature: float = TEMPERATURE) -> Vectors:
    """Probability of each label for each text: softmax of cosine divided by `temperature`.

    Args:
        text_vectors: shape (texts, dimension), unit vectors of the texts.
        label_vectors: shape (labels, dimension), unit vectors of the labels' hypotheses.

    Returns:
        Shape (texts, labels), float32; each row sums to 1.
    """
    logits = (text_vectors @ label_vectors.T).astype(np.float64) / temperature
    # The largest becomes 0, so that no exponential overflows.
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Vectors = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities
