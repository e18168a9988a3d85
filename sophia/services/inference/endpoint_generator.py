"""Generation by an OpenAI-compatible server (`POST {url}/chat/completions`).

What a server says of an error is never quoted: it may repeat the key or the text. The same goes for the errors of the
HTTP client, which are named by their type alone.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import httpx
from httpx_sse import EventSource

from sophia.errors import ConfigurationError, SophiaError, TemporaryError
from sophia.services.inference.generate import GenerateResult, RefusedRequestError
from sophia.services.inference.schemas import GenerateRequest
from sophia.settings import Settings

_URL = "SOPHIA_INFERENCE__GENERATE_URL"
_MODEL = "SOPHIA_INFERENCE__GENERATE_MODEL"
_KEY = "SOPHIA_INFERENCE__GENERATE_KEY"
_RETRIED_STATUS = frozenset({408, 409, 425, 429})
CONNECT_SECONDS = 5.0


class EndpointGenerator:
    """Implements `Generator` by a server.

    Raises:
        ConfigurationError: the address, the model's name or the key is missing or malformed.
    """

    def __init__(self, settings: Settings) -> None:
        inference = settings.inference
        if inference.generate_model is None:
            raise ConfigurationError(f"{_MODEL} is not set; name the model to ask the server of {_URL} for")
        self.name = inference.generate_model
        headers = {}
        if inference.generate_key is not None:
            key = inference.generate_key.get_secret_value().strip()
            if not key.isascii() or not key.isprintable():
                # The client would refuse it too, and quote it.
                raise ConfigurationError(f"{_KEY} holds characters that no HTTP header may have")
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx.AsyncClient(
            base_url=_base_url(inference.generate_url or ""),
            headers=headers,
            timeout=httpx.Timeout(inference.timeout_seconds, connect=min(CONNECT_SECONDS, inference.timeout_seconds)),
        )

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """See `Generator.generate`."""
        async with self._answer(request, stream=False) as response:
            await response.aread()
        try:
            answer = response.json()
            choice = answer["choices"][0]
            usage = answer.get("usage") or {}
            text = choice["message"]["content"] or ""
            if not isinstance(text, str):
                raise TypeError
            return GenerateResult(
                text=text,
                finish_reason=str(choice.get("finish_reason") or "stop"),
                prompt_tokens=usage.get("prompt_tokens"),
                completion_tokens=usage.get("completion_tokens"),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise ConfigurationError(
                f"the server of {_URL} answers what is no chat completion; is it the base URL of an "
                "OpenAI-compatible server, such as https://host/v1?"
            ) from None

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[str, None]:
        """See `Generator.stream`."""
        async with self._answer(request, stream=True) as response:
            if "text/event-stream" not in response.headers.get("content-type", ""):
                raise ConfigurationError(f"the server of {_URL} does not stream; is it an OpenAI-compatible server?")
            finished = False
            async for event in EventSource(response).aiter_sse():
                if event.data.strip() == "[DONE]":
                    return
                if not event.data:
                    continue
                text, last = _piece(event.data)
                finished = finished or last
                if text:
                    yield text
            if not finished:
                raise TemporaryError(f"the server of {_URL} ended its answer in the middle")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    @asynccontextmanager
    async def _answer(self, request: GenerateRequest, *, stream: bool) -> AsyncIterator[httpx.Response]:
        """The server's answer, once its status is known to be good. Leaving it early closes the connection."""
        asked: dict[str, Any] = {
            "model": self.name,
            "messages": request.conversation(),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "stream": stream,
        }
        if request.stop:
            asked["stop"] = request.stop
        if request.seed is not None:
            asked["seed"] = request.seed
        try:
            async with self._client.stream("POST", "chat/completions", json=asked) as response:
                if not response.is_success:
                    raise _refusal(response.status_code)
                yield response
        except httpx.HTTPError as error:
            raise TemporaryError(f"the server of {_URL} does not answer: {type(error).__name__}") from None


def _base_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        # Not quoted: an address may hold a password.
        raise ConfigurationError(f"{_URL} is no address; it looks like https://host/v1")
    if parsed.userinfo:
        # The client would log it with each request.
        raise ConfigurationError(f"{_URL} holds a user name or password; set {_KEY} instead")
    return url.rstrip("/") + "/"


def _refusal(status: int) -> SophiaError:
    """The error of a status that is no success."""
    if status in _RETRIED_STATUS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return TemporaryError(f"the server of {_URL} answers {status}")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return ConfigurationError(f"the server of {_URL} answers {status}: set {_KEY} to a key that it knows")
    if status < HTTPStatus.BAD_REQUEST or status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
        return ConfigurationError(
            f"the server of {_URL} answers {status}: it is no base URL such as https://host/v1, "
            f"or the server does not know the model of {_MODEL}"
        )
    return RefusedRequestError(f"the server of {_URL} refuses the request with {status}; it may be too long for it")


def _piece(data: str) -> tuple[str, bool]:
    """The text of an event, and whether it is the last one with text.

    Raises:
        TemporaryError: it is an error, or no piece of a chat completion.
    """
    try:
        event = json.loads(data)
        if event.get("error") is not None:
            raise TemporaryError(f"the server of {_URL} broke off with an error")
        choices = event["choices"]
        if not choices:
            # Usage figures behind the text.
            return "", False
        text = choices[0]["delta"].get("content") or ""
        if not isinstance(text, str):
            raise TypeError
        return text, choices[0].get("finish_reason") is not None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise TemporaryError(f"the server of {_URL} sent what is no piece of a chat completion") from None
