"""Bodies of requests and answers. The OpenAPI document is made of these models, so it cannot differ from what is done.

Unknown fields are refused: a misspelt option that is ignored would be a wrong answer that looks right. The bounds of
numbers and sizes of texts come from the settings; `limited` puts them in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator
from pydantic_core import PydanticCustomError

from sophia.catalog.models import EmbeddingModel
from sophia.services.inference.classify import TEMPLATE
from sophia.settings import InferenceSettings

LARGEST_INTEGER = 2**63 - 1
_M = TypeVar("_M", bound=BaseModel)


def _whole(value: Any) -> Any:
    """JSON does not tell 1.0 from 1, and some languages write every number so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Choice(_Body):
    """A body of which fields exclude each other.

    A field that was not sent has an empty default of its type, so that `null` is refused as any other wrong type is.
    """

    exactly_one: ClassVar[tuple[str, str]]

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        first, second = self.exactly_one
        if (first in self.model_fields_set) == (second in self.model_fields_set):
            raise PydanticCustomError("exactly_one", f"give either `{first}` or `{second}`")
        return self


def _one_of(first: str, second: str) -> ConfigDict:
    return ConfigDict(json_schema_extra={"oneOf": [{"required": [first]}, {"required": [second]}]})


class _Texts(_Choice):
    exactly_one = ("texts", "text")

    texts: list[str] = Field(default_factory=list, min_length=1, description="Texts; an empty text is one, too.")
    text: str = Field(default_factory=str, description="A single text, in place of `texts`.")

    @property
    def given(self) -> list[str]:
        """The texts, however they were sent."""
        return [self.text] if "text" in self.model_fields_set else self.texts

    def field(self, place: int) -> str:
        """Where the text of that place was sent."""
        return "text" if "text" in self.model_fields_set else f"texts.{place}"


class EmbedRequest(_Texts):
    """Texts to embed."""

    model_config = _one_of("texts", "text")

    kind: Literal["document", "query"] = Field(
        "document", description="Whether the model's prefix of documents or that of queries is put before the texts."
    )


class EmbedResponse(_Body):
    """Vectors in the order of the texts, each of length 1."""

    model: str = Field(description="The catalog's name of the model.")
    precision: str = Field(description="Class of numeric precision.")
    dimension: int = Field(description="Numbers of a vector.")
    vectors: list[list[float]]
    tokens: int = Field(description="Tokens that the model read: special ones included, none beyond its length.")


class AnalyzeRequest(_Texts):
    """Texts of which to tell the sentiment."""

    model_config = _one_of("texts", "text")


class SentimentItem(_Body):
    """The sentiment of one text."""

    label: Literal["positive", "neutral", "negative"]
    score: float = Field(ge=-1, le=1, description="-1 most negative, 1 most positive.")
    scores: dict[str, float] = Field(description="Share of each label.")


class AnalyzeResponse(_Body):
    """Sentiments in the order of the texts."""

    model: str
    results: list[SentimentItem]


class ClassifyRequest(_Texts):
    """Texts, and the labels of which one fits each best."""

    model_config = _one_of("texts", "text")

    labels: list[Annotated[str, Field(min_length=1, max_length=500)]] = Field(
        min_length=2, max_length=200, description="Labels, all different.", json_schema_extra={"uniqueItems": True}
    )
    template: str = Field(
        TEMPLATE,
        max_length=1_000,
        pattern=r"^[^{}]*\{(label)?\}[^{}]*$",
        description="A sentence in which {} or {label} stands for a label.",
    )

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise PydanticCustomError("labels", "`labels` holds one more than once")
        return self


class ClassifyItem(_Body):
    """The label of one text."""

    label: str = Field(description="The most probable one.")
    score: float = Field(ge=0, le=1, description="Its probability.")
    scores: dict[str, float] = Field(description="Probability of each label; the sum is 1.")


class ClassifyResponse(_Body):
    """Labels in the order of the texts."""

    model: str
    results: list[ClassifyItem]
    tokens: int


class SummarizeRequest(_Body):
    """A text to shorten: by its most telling sentences, or by words of a text model where one is configured."""

    model_config = ConfigDict(json_schema_extra={"not": {"required": ["sentences", "max_tokens"]}})

    text: str = Field(min_length=1)
    sentences: Integer = Field(3, ge=1, le=200, description="Take this many sentences of the text, in their order.")
    max_tokens: Integer = Field(
        128, ge=1, le=4_096, description="Have the text model write this many tokens at most; 503 if there is none."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if {"sentences", "max_tokens"} <= self.model_fields_set:
            raise PydanticCustomError("one_way", "give either `sentences` or `max_tokens`")
        return self


class SummarizeResponse(_Body):
    """A summary. Without `sentences` and `max_tokens` it is written by the text model where there is one."""

    model: str
    method: Literal["extractive", "abstractive"]
    summary: str
    places: list[int] = Field(description="Places of the sentences that were taken, from 0; empty if abstractive.")
    tokens: int = Field(description="Tokens that the embedding model read; 0 if abstractive.")


class Message(_Body):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class GenerateRequest(_Choice):
    """What to go on from, and how. Generators take it as it came."""

    model_config = _one_of("prompt", "messages")
    exactly_one = ("prompt", "messages")

    prompt: str = Field(default_factory=str, min_length=1, description="Instead of a conversation: what the user says.")
    messages: list[Message] = Field(
        default_factory=list, min_length=1, max_length=1_000, description="The conversation so far."
    )
    max_tokens: Integer = Field(256, ge=1, le=32_768, description="Most tokens to write.")
    temperature: float = Field(0.7, ge=0, le=2, description="0 takes the likeliest token each time.")
    stop: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(
        default_factory=list, max_length=8, description="Texts before which the answer ends; they are not part of it."
    )
    # Bounds of a value that may be absent belong on the integer itself: the document loses them elsewhere.
    seed: Annotated[int, Field(ge=0, le=LARGEST_INTEGER), BeforeValidator(_whole)] | None = Field(
        None, description="Makes sampling repeatable where it can be."
    )
    stream: bool = Field(False, description="Answer by server-sent events, piece by piece.")

    def conversation(self) -> list[dict[str, str]]:
        """The messages; a prompt is what a user says."""
        if not self.messages:
            return [{"role": "user", "content": self.prompt}]
        return [{"role": message.role, "content": message.content} for message in self.messages]


class GenerateResponse(_Body):
    """What was written."""

    model: str
    text: str
    finish_reason: str = Field(description="`stop`, or `length` if max_tokens ended it.")
    prompt_tokens: int | None
    completion_tokens: int | None


def _as_list(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and any(isinstance(item, int | list) for item in value):
        raise PydanticCustomError(
            "tokens", "token arrays are not taken, since they belong to another model's tokenizer; send the text"
        )
    return value


class OpenAIEmbeddingsRequest(_Body):
    """As OpenAI's `POST /v1/embeddings`. Texts are embedded as documents."""

    input: Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])] = Field(min_length=1)
    model: str = Field(description="The catalog's name of the served model.")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: the bytes of little-endian float32."
    )
    dimensions: Integer | None = Field(None, description="The model's own; any other is refused.")
    user: str | None = Field(None, description="Taken for compatibility, and ignored.")


class OpenAIEmbedding(_Body):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class OpenAIUsage(_Body):
    """Tokens that the model read."""

    prompt_tokens: int
    total_tokens: int


class OpenAIEmbeddingsResponse(_Body):
    """As OpenAI's."""

    object: Literal["list"]
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage


class Fault(_Body):
    """A field that is not as it must be."""

    field: str = Field(description="Its path, such as `texts.3`; `body` for the whole.")
    message: str


class ErrorBody(_Body):
    """Every error answer, except for those below /v1."""

    error: str
    fix: str = Field(default_factory=str, description="What to do about it.")
    faults: list[Fault] = Field(default_factory=list, description="The first faults of the body, by field.")


class OpenAIErrorDetail(_Body):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorBody(_Body):
    """Error answers below /v1, in OpenAI's shape."""

    error: OpenAIErrorDetail


class StatusBody(_Body):
    """Whether the process is up, or ready."""

    status: str


@dataclass(frozen=True, slots=True)
class Requests:
    """The request models with the settings' limits."""

    embed: type[EmbedRequest]
    analyze: type[AnalyzeRequest]
    classify: type[ClassifyRequest]
    summarize: type[SummarizeRequest]
    generate: type[GenerateRequest]
    openai: type[OpenAIEmbeddingsRequest]


def limited(settings: InferenceSettings, model: EmbeddingModel) -> Requests:
    """The request models, with number and length of texts bounded, and the served model's name and dimension."""
    text = Annotated[str, Field(max_length=settings.max_text_chars)]
    texts = Annotated[list[text], Field(min_length=1, max_length=settings.max_texts)]
    either = Annotated[texts, BeforeValidator(_as_list, json_schema_input_type=text | texts)]
    message = _bounded(Message, {"content": text})
    # Told by the document, but judged by the handler, which has the better words.
    name = Annotated[str, Field(json_schema_extra={"enum": [model.name]})]
    dimensions = Annotated[Integer | None, Field(json_schema_extra={"enum": [model.dimension, None]})]
    types = {
        "text": text,
        "texts": texts,
        "prompt": text,
        "messages": list[message],  # type: ignore[valid-type]
        "input": either,
        "model": name,
        "dimensions": dimensions,
    }
    return Requests(
        embed=_bounded(EmbedRequest, types),
        analyze=_bounded(AnalyzeRequest, types),
        classify=_bounded(ClassifyRequest, types),
        summarize=_bounded(SummarizeRequest, types),
        generate=_bounded(GenerateRequest, types),
        openai=_bounded(OpenAIEmbeddingsRequest, types),
    )


def _bounded(model: type[_M], types: Mapping[str, Any]) -> type[_M]:
    """A model of the same name whose fields have these types; defaults, bounds and descriptions stay."""
    fields: dict[str, Any] = {name: (types[name], field) for name, field in model.model_fields.items() if name in types}
    return create_model(model.__name__, __base__=model, __doc__=model.__doc__, **fields)
