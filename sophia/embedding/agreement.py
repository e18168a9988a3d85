"""How far two ways to compute a model may differ, and the texts that they are compared on.

Precision classes are promises about the vectors, whatever computes them:

* `exact`: no component differs by more than `EXACT` from sentence-transformers in float32;
* `fast`: no cosine below `FAST`;
* `int8`: no promise; its agreement is printed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sophia.catalog.models import Precision
from sophia.embedding.base import Vectors

# Largest difference of a component.
EXACT = 1e-5
# Smallest cosine.
FAST = 0.9998
# Of different lengths, so that packing and padding show, and two of the same, which packed attention takes together;
# one is longer than the windows that models attend within. Few, since a model is compared whenever it is loaded.
PROBES = (
    "one",
    "two",
    "A row changes, and its text is embedded again.",
    "naïve café, 日本語 and עברית; 0.5 % of 1,000 😀",
    "Orders that were placed before noon leave the warehouse on the same day; those that come later, or on a day "
    "when the carrier does not collect, leave on the next one. ",
    "def mean(values): return sum(values) / len(values)",
    "The harbour lies behind two islands, so that ships of any size find calm water there in every season. In the "
    "twelfth century fishermen built the first houses on the northern shore; a church, a market and a wall with five "
    "gates followed within three generations. Merchants brought salt, cloth and grain, and took herring, timber and "
    "amber home. After the fire of 1684 the town was laid out anew with straight streets, of which seven remain. "
    "Steam came in 1851, the railway eight years later, and with both came shipyards, rope works and a mill. Today "
    "most people work in schools, in the hospital or for the ferry line, but the fish market still opens at five every "
    "morning, and whoever wants a place near the window of the old customs house has to be early.",
)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike two sets of vectors of the same texts are.

    Attributes:
        difference: largest absolute difference of a component.
        cosine: smallest cosine of a text's two vectors.
        same_nearest: share of texts whose nearest other text is the same in both.
    """

    difference: float
    cosine: float
    same_nearest: float

    @classmethod
    def of(cls, ours: Vectors, theirs: Vectors) -> Agreement:
        """Compare unit vectors, row by row; shape (texts, dimension) each."""
        same = _nearest(ours) == _nearest(theirs) if len(ours) > 1 else np.ones(1)
        return cls(float(np.abs(ours - theirs).max()), float((ours * theirs).sum(axis=1).min()), float(np.mean(same)))

    def keeps(self, precision: Precision) -> bool:
        """Whether that is what the precision class promises. Vectors with values that are no numbers keep nothing."""
        if precision == "exact":
            return self.difference <= EXACT
        return self.cosine >= (FAST if precision == "fast" else -1)

    def __str__(self) -> str:
        return (
            f"largest difference {self.difference:.1e}, smallest cosine {self.cosine:.6f}, "
            f"{self.same_nearest:.1%} same nearest neighbour"
        )


def _nearest(vectors: Vectors) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: np.ndarray[tuple[int], np.dtype[np.intp]] = similarity.argmax(axis=1)
    return nearest
