"""Bearer tokens: several at a time, compared by their hashes in constant time.

Without any token only this machine is served, and only under its own names: a foreign page that rebinds its DNS name
to loopback is refused, and one that posts across origins is stopped by its browser, which sees no permission.
"""

from __future__ import annotations

import hashlib
import hmac

from starlette.types import Scope

LOOPBACK = ("127.0.0.1", "localhost")
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="sophia"', "Connection": "close"}
_SCHEME = b"bearer"


class TokenSet:
    """Tokens that are accepted, from a text that separates them by commas.

    They are kept as hashes, so that all have one length and none can be shown.
    """

    def __init__(self, given: str) -> None:
        self._hashes = [_hash(token.strip().encode()) for token in given.split(",") if token.strip()]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def accepts(self, token: bytes) -> bool:
        """Whether a token is one of them; the time that it takes does not depend on which, or on how much of it."""
        presented = _hash(token)
        found = False
        for known in self._hashes:
            found |= hmac.compare_digest(known, presented)
        return found


def sent_token(scope: Scope) -> bytes | None:
    """The bearer token of a request; None without exactly one header that holds one."""
    sent = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, token = (sent[0] if len(sent) == 1 else b"").partition(b" ")
    return token.strip() if scheme.lower() == _SCHEME else None


def has_authorization(scope: Scope) -> bool:
    """Whether a request has tried to show who it is."""
    return any(name == b"authorization" for name, _ in scope["headers"])


def _hash(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
