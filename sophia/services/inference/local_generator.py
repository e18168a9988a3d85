"""Generation by a local language model, one answer at a time on one thread.

Requests wait in a bounded queue. Between two tokens the thread looks whether the caller has gone, a stop string has
come or the process is closing, and then ends the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from threading import Event, Lock
from time import perf_counter
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import StoppingCriteriaList, TextStreamer

from sophia.embedding.scheduler import OverloadedError
from sophia.errors import SophiaError, TemporaryError
from sophia.services.inference.generate import GenerateResult, RefusedRequestError
from sophia.services.inference.schemas import GenerateRequest
from sophia.services.inference.stops import StopFilter
from sophia.services.inference.text_models import TextModel, padding_id

# Answers that may wait behind the one that is written.
QUEUE = 8
# Below this temperature the likeliest token is taken: what a division by less yields is no number in half precision.
COLDEST = 0.01
# Seconds of an answer, as long as none was written.
FIRST_SECONDS = 5.0


class FullQueueError(OverloadedError):
    """So many answers wait as may."""

    def __init__(self, retry_after: float) -> None:
        TemporaryError.__init__(self, f"the generator's queue is full; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


@dataclass(slots=True)
class _Answer:
    """An answer that is written on the thread and read on an event loop.

    Attributes:
        pieces: texts, and at the end None or the error that ended it.
        unwanted: the reader has gone.
    """

    request: GenerateRequest
    ids: list[int]
    limit: int
    loop: asyncio.AbstractEventLoop
    pieces: asyncio.Queue[str | SophiaError | None] = field(default_factory=asyncio.Queue)
    unwanted: Event = field(default_factory=Event)
    written: int = 0
    finish_reason: str = "stop"

    def put(self, piece: str | SophiaError | None) -> None:
        """Hand a piece to the reader, from the thread."""
        try:
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except RuntimeError:
            # The reader's event loop is closed.
            self.unwanted.set()


class LocalGenerator:
    """Implements `Generator` by a causal language model.

    Args:
        queue: most answers that wait.
    """

    def __init__(self, loaded: TextModel, queue: int = QUEUE) -> None:
        self.name = loaded.name
        self._loaded = loaded
        self._queue = queue
        self._waiting = 0
        self._seconds = FIRST_SECONDS
        self._closing = Event()
        self._lock = Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """See `Generator.generate`."""
        answer = await self._answer(request)
        async with aclosing(self._pieces(answer)) as pieces:
            text = "".join([piece async for piece in pieces])
        return GenerateResult(text, answer.finish_reason, len(answer.ids), answer.written)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[str, None]:
        """See `Generator.stream`."""
        async with aclosing(self._pieces(await self._answer(request))) as pieces:
            async for piece in pieces:
                yield piece

    async def close(self) -> None:
        """Break off what is written or waits, and end the thread."""
        with self._lock:
            self._closing.set()
        await asyncio.to_thread(self._thread.shutdown)

    async def _answer(self, request: GenerateRequest) -> _Answer:
        # Aside, since a long text would hold up the event loop.
        ids = await asyncio.to_thread(self._ids, request)
        room = self._loaded.length - len(ids)
        if room < 1:
            raise RefusedRequestError(
                f"the request has {len(ids)} tokens; {self.name!r} sees {self._loaded.length} with its answer"
            )
        return _Answer(request, ids, min(request.max_tokens, room), asyncio.get_running_loop())

    def _ids(self, request: GenerateRequest) -> list[int]:
        tokenizer = self._loaded.tokenizer
        ids: list[int]
        if tokenizer.chat_template is not None:
            try:
                ids = tokenizer.apply_chat_template(
                    request.conversation(), add_generation_prompt=True, return_dict=False
                )
            except TemplateError:
                raise RefusedRequestError(
                    f"the chat template of {self.name!r} refuses these messages; "
                    "most want a user's message first, and then one of each in turn"
                ) from None
            return ids
        text = request.prompt
        if request.messages:
            turns = [f"{turn['role']}: {turn['content']}\n" for turn in request.conversation()]
            text = "".join([*turns, "assistant:"])
        ids = tokenizer(text, verbose=False)["input_ids"]
        return ids

    async def _pieces(self, answer: _Answer) -> AsyncGenerator[str, None]:
        with self._lock:
            if self._closing.is_set():
                raise TemporaryError("the generator was closed")
            if self._waiting > self._queue:
                raise FullQueueError(min(60.0, max(1.0, self._waiting * self._seconds)))
            self._waiting += 1
            coming = self._thread.submit(self._work, answer)
        try:
            while (piece := await answer.pieces.get()) is not None:
                if isinstance(piece, SophiaError):
                    raise piece
                yield piece
        finally:
            answer.unwanted.set()
            if coming.cancel():
                # It had not begun, and makes room at once.
                self._left()

    def _work(self, answer: _Answer) -> None:
        """Write an answer; runs on the thread, and always ends what the reader reads."""
        started = perf_counter()
        try:
            if not answer.unwanted.is_set() and not self._closing.is_set():
                self._write(answer)
                # Half of what came before, so that one odd answer decides little.
                self._seconds += (perf_counter() - started - self._seconds) / 2
            answer.put(TemporaryError("the generator was closed") if self._closing.is_set() else None)
        except Exception as error:
            # Named by its type alone: a library's message may quote the text.
            answer.put(TemporaryError(f"{self.name!r} failed to write: {type(error).__name__}"))
        finally:
            self._left()

    def _left(self) -> None:
        with self._lock:
            self._waiting -= 1

    def _write(self, answer: _Answer) -> None:
        request, model = answer.request, self._loaded.model
        streamer = _Streamer(self._loaded.tokenizer, answer)

        def halt(ids: Any, _scores: Any) -> Any:
            done = streamer.stops.stopped or answer.unwanted.is_set() or self._closing.is_set()
            return torch.full((len(ids),), done, device=ids.device)

        if request.seed is None:
            torch.seed()
        else:
            torch.manual_seed(request.seed)
        ids = torch.tensor([answer.ids], device=model.device)
        warm = request.temperature >= COLDEST
        sampling = {"do_sample": True, "temperature": request.temperature} if warm else {"do_sample": False}
        with torch.inference_mode():
            written = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=answer.limit,
                # The model's own least length may be more than was asked for.
                min_length=0,
                num_beams=1,
                pad_token_id=padding_id(self._loaded.tokenizer),
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([halt]),
                **sampling,
            )[0]
        ends = model.generation_config.eos_token_id
        ended = int(written[-1]) in (ends if isinstance(ends, list) else [ends])
        answer.finish_reason = "stop" if streamer.stops.stopped or ended else "length"


class _Streamer(TextStreamer):  # type: ignore[misc]
    """Hands whole words to the reader as they are written, up to the first stop string."""

    def __init__(self, tokenizer: Any, answer: _Answer) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.stops = StopFilter(answer.request.stop)
        self._answer = answer

    def put(self, value: Any) -> None:
        """Take the prompt at first, then one token at a time."""
        if not self.next_tokens_are_prompt:
            self._answer.written += 1
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass on what cannot be changed by the next token any more."""
        certain = self.stops.feed(text) + (self.stops.end() if stream_end else "")
        if certain:
            self._answer.put(certain)
