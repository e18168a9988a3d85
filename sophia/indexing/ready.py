"""Vectors that another system computed: an index whose entry names a `vector` column stores these, and computes none.

The model of such an index embeds queries only; it must be the one that the other system used. Every store ranks by the
cosine, so a vector is kept at length 1; one that has it already is kept to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sophia.embedding.base import Vectors
from sophia.errors import DocumentError

# How far a length may be from 1 and count as 1: as far as rounding to seven digits leads.
UNIT = 1e-5


class ReadyVectors:
    """Takes the vectors of documents from a column.

    Args:
        column: holds a list of numbers.
        dimension: of the index's model.
    """

    def __init__(self, column: str, dimension: int) -> None:
        self._column = column
        self._dimension = dimension

    def of(self, row: Mapping[str, Any]) -> Vectors:
        """The vector of a row, float32 of length 1, shape (dimension,).

        Raises:
            DocumentError: the column is absent or holds no such vector; the message names sizes, never values.
        """
        name = self._column
        if name not in row:
            raise DocumentError(f"column {name!r}, which holds the vector, is not in the row")
        given = row[name]
        if not isinstance(given, list) or not all(type(number) in (int, float) for number in given):
            raise DocumentError(f"column {name!r} must hold the vector as a list of numbers")
        if len(given) != self._dimension:
            raise DocumentError(
                f"column {name!r} holds {len(given):,} numbers, and the index has {self._dimension:,} dimensions"
            )
        try:
            exact = np.array(given, dtype=np.float64)
        except OverflowError:
            exact = np.full(1, np.inf)
        largest = float(np.abs(exact).max())
        if not np.isfinite(largest) or largest == 0:
            raise DocumentError(f"column {name!r} holds a vector without a direction: all zero, or a number too large")
        # First to a size whose squares neither vanish nor overflow.
        scaled = exact / largest
        length = largest * float(np.linalg.norm(scaled))
        if abs(length - 1) > UNIT:
            exact = scaled / np.linalg.norm(scaled)
        return exact.astype(np.float32)
