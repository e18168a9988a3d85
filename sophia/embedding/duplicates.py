"""Equal texts of a call are computed once: the different ones, and the way back to all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sophia.embedding.base import RefusedTextsError, Vectors


class Distinct:
    """The different texts among those of a call, as `texts`, in the order in which they first came."""

    def __init__(self, texts: Sequence[str]) -> None:
        rows: dict[str, int] = {}
        # For each text of the call, which of the different ones it is.
        self._rows = [rows.setdefault(text, len(rows)) for text in texts]
        self.texts = list(rows)

    @property
    def duplicates(self) -> int:
        """Texts of the call that equal an earlier one."""
        return len(self._rows) - len(self.texts)

    def outcome(self, vectors: Vectors, reasons: Mapping[int, str]) -> Vectors:
        """The vectors of all texts of the call, from those of the different ones.

        Args:
            vectors: shape (different texts, dimension).
            reasons: why one of these is refused, by its place among them.

        Raises:
            RefusedTextsError: some are; by their places in the call.
        """
        if self.duplicates:
            vectors = vectors[self._rows]
        if reasons:
            raise RefusedTextsError(
                vectors, {place: reasons[row] for place, row in enumerate(self._rows) if row in reasons}
            )
        return vectors
