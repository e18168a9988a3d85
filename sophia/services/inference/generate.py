"""Text generation: by an OpenAI-compatible server that requests are passed to, or by a local language model.

Both answer the same request in the same way, as a whole or as a stream. A stream that is closed, and a call that is
cancelled, end the work behind it: the server's connection is closed, the local model stops before its next token.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from sophia.errors import SophiaError
from sophia.services.inference.schemas import GenerateRequest
from sophia.settings import Settings


class RefusedRequestError(SophiaError):
    """The model or its server does not take this very request; another one it may."""


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """An answer.

    Attributes:
        finish_reason: `stop` if the answer is complete, `length` if `max_tokens` ended it, or what the server says.
        prompt_tokens: tokens of the request, None if the server does not say.
        completion_tokens: tokens written, None if the server does not say.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None


class Generator(Protocol):
    """Writes text. One instance serves all requests of a process.

    Attributes:
        name: of the model.
    """

    @property
    def name(self) -> str: ...

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """The whole answer.

        Raises:
            OverloadedError: too many requests wait.
            TemporaryError: the server is away or overloaded.
            RefusedRequestError: this request cannot be answered, since it is too long for instance.
            ConfigurationError: the server's address, key or model name is wrong.
        """
        ...

    def stream(self, request: GenerateRequest) -> AsyncGenerator[str, None]:
        """The answer piece by piece; raises what `generate` raises, when the first piece is asked for or later.

        Whoever does not read to the end closes it (`contextlib.aclosing`), so that the work behind it ends at once.
        """
        ...

    async def close(self) -> None:
        """End what runs, and give back connections and threads."""
        ...


def load_generator(settings: Settings) -> Generator | None:
    """The server of SOPHIA_INFERENCE__GENERATE_URL, else the local model of SOPHIA_INFERENCE__GENERATE_MODEL; None if
    neither is set.

    Raises:
        ConfigurationError: the model cannot be loaded, or the settings of the server are not usable.
    """
    inference = settings.inference
    if inference.generate_url is not None:
        from sophia.services.inference.endpoint_generator import EndpointGenerator

        return EndpointGenerator(settings)
    if inference.generate_model is None:
        return None
    from sophia.services.inference.local_generator import LocalGenerator
    from sophia.services.inference.text_models import load_text_model

    variable = "SOPHIA_INFERENCE__GENERATE_MODEL"
    return LocalGenerator(load_text_model("generation", inference.generate_model, settings, variable))
