"""A document's text: the index's template over the row, cut into chunks by tokens.

Chunks keep their offsets in the rendered text, and the splitter (semantic-text-splitter) cuts at the largest unit
that fits: paragraph, sentence, word. What a chunk says is decided by the row, the template and the chunker alone, so
its hash tells whether it must be embedded again.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sophia.embedding.base import Vectors
from sophia.errors import DocumentError
from sophia.indexing.ready import ReadyVectors

if TYPE_CHECKING:
    from sophia.indexing.versions import IndexVersion

HASH_BYTES = 16


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a rendered text: its characters `start` to `end`, and the hash of `content`.

    `vector` is the one that came with the document, where nothing is computed.
    """

    start: int
    end: int
    content: str
    content_hash: bytes
    vector: Vectors | None = None


def content_hash(text: str) -> bytes:
    """The first 16 bytes of SHA-256, which SQL can compute too: `substring(sha256(convert_to(…)) for 16)`."""
    return hashlib.sha256(text.encode()).digest()[:HASH_BYTES]


class Texts:
    """Renders and cuts the documents of one index.

    Args:
        template: `{column}` placeholders of the row's columns; null renders as nothing.
        tokenizer: the model's `tokenizers.Tokenizer`, or None to estimate four characters a token.
        max_bytes: a longer text is refused.
        ready: where documents bring their vectors; then a text is one chunk, however long.
    """

    def __init__(
        self,
        template: str,
        chunk_tokens: int,
        chunk_overlap: int,
        tokenizer: Any,
        max_bytes: int,
        ready: ReadyVectors | None = None,
    ) -> None:
        from semantic_text_splitter import TextSplitter

        self._ready = ready
        self._parts = list(string.Formatter().parse(template))
        self._max_bytes = max_bytes
        self._tokens = chunk_tokens
        if tokenizer is not None:
            self._splitter: Any = TextSplitter.from_huggingface_tokenizer(
                tokenizer, chunk_tokens, overlap=chunk_overlap
            )
        else:
            self._splitter = TextSplitter(chunk_tokens * 4, overlap=chunk_overlap * 4)

    @classmethod
    def of(cls, version: IndexVersion, tokenizer: Any, max_bytes: int) -> Texts:
        """As a version of an index wants them."""
        index = version.index
        ready = ReadyVectors(index.vector, version.dimension) if index.vector is not None else None
        return cls(index.template, index.chunk_tokens, index.chunk_overlap, tokenizer, max_bytes, ready)

    def render(self, row: Mapping[str, Any]) -> str:
        """The text of a row.

        Raises:
            DocumentError: a column of the template is gone, or the text is too long.
        """
        pieces = []
        for literal, column, _, _ in self._parts:
            pieces.append(literal)
            if column is not None:
                if column not in row:
                    raise DocumentError(
                        f"column {column!r} of the template is not in the row; it was dropped or renamed"
                    )
                pieces.append(_text(row[column]))
        text = "".join(pieces).strip()
        size = len(text.encode())
        if size > self._max_bytes:
            raise DocumentError(
                f"text of {size} bytes is longer than {self._max_bytes}; "
                "shorten it or raise SOPHIA_INDEXER__MAX_TEXT_BYTES"
            )
        return text

    def chunks(self, row: Mapping[str, Any]) -> list[Chunk]:
        """The chunks of a row; none if its text is empty. Raises as `render` and `ReadyVectors.of` do."""
        text = self.render(row)
        if self._ready is not None:
            # A vector without a text is as good as any.
            return [Chunk(0, len(text), text, content_hash(text), self._ready.of(row))]
        if not text:
            return []
        if text.isascii() and len(text) + 2 <= self._tokens:
            # No token of ASCII text is shorter than a character, so this fits without counting: the usual short text.
            # Others may be cut finer: MiniLM's normaliser makes three tokens of a Hangul syllable.
            return [Chunk(0, len(text), text, content_hash(text))]
        return [
            Chunk(start, start + len(piece), piece, content_hash(piece))
            for start, piece in self._splitter.chunk_indices(text)
        ]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
