"""Bearer tokens: several at a time, compared by their hashes in constant time.

Without any token only this machine is served, and only under its own names: a foreign page that rebinds its DNS name
to loopback is refused, and one that posts across origins is stopped by its browser, which sees no permission.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from sophia.errors import ConfigurationError
from sophia.services.inference import errors
from sophia.settings import InferenceSettings

LOOPBACK = ("127.0.0.1", "localhost")
_SCHEME = b"bearer"


class Tokens:
    """The tokens that are accepted. Kept as hashes, so that all have one length and none can be shown.

    Raises:
        ConfigurationError: there is none, and the service would listen beyond this machine.
    """

    def __init__(self, settings: InferenceSettings) -> None:
        given = settings.tokens.get_secret_value() if settings.tokens is not None else ""
        self._hashes = [_hash(token.strip().encode()) for token in given.split(",") if token.strip()]
        if settings.tokens is not None and not self._hashes:
            raise ConfigurationError("SOPHIA_INFERENCE__TOKENS holds no token; separate several by commas")
        if not self._hashes and settings.host not in LOOPBACK:
            raise ConfigurationError(
                f"the inference service would be open to all who reach {settings.host}: set SOPHIA_INFERENCE__TOKENS, "
                "or SOPHIA_INFERENCE__HOST=127.0.0.1"
            )

    @property
    def required(self) -> bool:
        """Whether callers need one."""
        return bool(self._hashes)

    def accepts(self, token: bytes) -> bool:
        """Whether a token is one of them; the time that it takes does not depend on which, or on how much of it."""
        presented = _hash(token)
        found = False
        for known in self._hashes:
            found |= hmac.compare_digest(known, presented)
        return found


class BearerAuth:
    """Answers 401 to requests without an accepted token, before anything of their body is read."""

    def __init__(self, app: ASGIApp, tokens: Tokens, open_paths: Collection[str]) -> None:
        self._app = app
        self._tokens = tokens
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] == "http" and self._tokens.required and scope["path"] not in self._open:
            sent = [value for name, value in scope["headers"] if name == b"authorization"]
            scheme, _, token = (sent[0] if len(sent) == 1 else b"").partition(b" ")
            if scheme.lower() != _SCHEME or not self._tokens.accepts(token.strip()):
                refusal = errors.answer(
                    scope,
                    401,
                    "a bearer token is missing" if not sent else "the bearer token is not accepted",
                    fix="send the header `Authorization: Bearer …` with one of SOPHIA_INFERENCE__TOKENS",
                    headers={"WWW-Authenticate": 'Bearer realm="sophia"', "Connection": "close"},
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _hash(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
