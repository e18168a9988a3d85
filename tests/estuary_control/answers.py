"""What a server on loopback answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Answer:
    """An answer instead of the right one. A body shorter than `length` is cut off there."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    # Called before each of the body's bytes is sent.
    between: Callable[[], None] | None = None
    # The body is sent in chunks, and these behind it.
    trailers: dict[str, str] | None = None
