"""Who may ask the inference service: whoever has one of its bearer tokens, or, without any, this machine alone."""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from sophia.errors import ConfigurationError
from sophia.services.bearer import CHALLENGE, LOOPBACK, TokenSet, has_authorization, sent_token
from sophia.services.inference import errors
from sophia.settings import InferenceSettings


def tokens_of(settings: InferenceSettings) -> TokenSet:
    """The tokens that are accepted; none if callers need none.

    Raises:
        ConfigurationError: there is none, and the service would listen beyond this machine.
    """
    tokens = TokenSet(settings.tokens.get_secret_value() if settings.tokens is not None else "")
    if settings.tokens is not None and not tokens:
        raise ConfigurationError("SOPHIA_INFERENCE__TOKENS holds no token; separate several by commas")
    if not tokens and settings.host not in LOOPBACK:
        raise ConfigurationError(
            f"the inference service would be open to all who reach {settings.host}: set SOPHIA_INFERENCE__TOKENS, "
            "or SOPHIA_INFERENCE__HOST=127.0.0.1"
        )
    return tokens


class BearerAuth:
    """Answers 401 to requests without an accepted token, before anything of their body is read."""

    def __init__(self, app: ASGIApp, tokens: TokenSet, open_paths: Collection[str]) -> None:
        self._app = app
        self._tokens = tokens
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] == "http" and self._tokens and scope["path"] not in self._open:
            token = sent_token(scope)
            if token is None or not self._tokens.accepts(token):
                refusal = errors.answer(
                    scope,
                    401,
                    "the bearer token is not accepted" if has_authorization(scope) else "a bearer token is missing",
                    fix="send the header `Authorization: Bearer …` with one of SOPHIA_INFERENCE__TOKENS",
                    headers=CHALLENGE,
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)
