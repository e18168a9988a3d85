"""Generation by a language model of this process: real models with random weights."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from sophia.embedding.scheduler import OverloadedError
from sophia.errors import TemporaryError
from sophia.services.inference.generate import RefusedRequestError, load_generator
from sophia.services.inference.local_generator import LocalGenerator
from sophia.services.inference.schemas import GenerateRequest, Message
from sophia.services.inference.text_models import TextModel, load_text_model
from sophia.settings import InferenceSettings, load_settings
from tests.text_models import CHAT_TEMPLATE, save_causal

LENGTH = 2_048
# Longer than any test lets it become.
ENDLESS = GenerateRequest(prompt="the fox", max_tokens=2_000, temperature=1.0, seed=1)
# Tokens of it that are written before the model is held, until the test has done what it wants to see the effect of.
HELD = 200
SHORT = GenerateRequest(prompt="the quick brown fox", max_tokens=24, temperature=1.0, seed=5)
SETTINGS = load_settings(device="cpu")
VARIABLE = "SOPHIA_INFERENCE__GENERATE_MODEL"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    return load_text_model("generation", save_causal(tmp_path_factory.mktemp("causal"), LENGTH), SETTINGS, VARIABLE)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    path = save_causal(tmp_path_factory.mktemp("chat"), 256, CHAT_TEMPLATE)
    return load_text_model("generation", path, SETTINGS, VARIABLE)


class _Passes:
    """Counts the forward passes of a model, one for each token that it writes, and can hold it after some of them."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        self.free = 1_000_000
        self.gate = Event()
        self._handle = model.register_forward_hook(self._passed)

    def _passed(self, *_arguments: Any) -> None:
        self.count += 1
        if self.count == self.free:
            self.gate.wait(60)

    def remove(self) -> None:
        self.gate.set()
        self._handle.remove()


@pytest.fixture
def passes(loaded: TextModel) -> Iterator[_Passes]:
    counted = _Passes(loaded.model)
    yield counted
    counted.remove()


def _run(loaded: TextModel, ask: Callable[[LocalGenerator], Awaitable[Any]], queue: int = 8) -> Any:
    async def go() -> Any:
        generator = LocalGenerator(loaded, queue)
        try:
            return await asyncio.wait_for(ask(generator), 120)
        finally:
            await generator.close()

    return asyncio.run(go())


def test_an_answer_and_its_figures(loaded: TextModel) -> None:
    result = _run(loaded, lambda generator: generator.generate(SHORT))
    assert result.text
    assert not result.text.startswith(SHORT.prompt or "")
    assert result.finish_reason == "length"
    assert result.prompt_tokens == len(loaded.tokenizer(SHORT.prompt)["input_ids"])
    assert result.completion_tokens == 24
    # Each token was read off the text that was written, and none is missing.
    assert len(loaded.tokenizer(result.text)["input_ids"]) >= 24 - 2


def test_a_stream_is_the_answer_in_pieces(loaded: TextModel) -> None:
    async def ask(generator: LocalGenerator) -> None:
        pieces = [piece async for piece in generator.stream(SHORT)]
        assert len(pieces) > 2
        assert "".join(pieces) == (await generator.generate(SHORT)).text

    _run(loaded, ask)


def test_a_seed_repeats_and_none_does_not(loaded: TextModel) -> None:
    async def ask(generator: LocalGenerator) -> None:
        unseeded = SHORT.model_copy(update={"seed": None})
        first, second = await generator.generate(SHORT), await generator.generate(SHORT)
        # Behind a seeded answer too, which leaves the random numbers in a known state.
        third = await generator.generate(unseeded)
        await generator.generate(SHORT)
        fourth = await generator.generate(unseeded)
        assert first == second
        assert third.text != fourth.text

    _run(loaded, ask)


def test_temperature_zero_takes_the_likeliest(loaded: TextModel) -> None:
    async def ask(generator: LocalGenerator) -> None:
        cold = [SHORT.model_copy(update={"temperature": t, "seed": seed}) for t, seed in ((0.0, 1), (1e-300, 2))]
        assert (await generator.generate(cold[0])).text == (await generator.generate(cold[1])).text
        assert (await generator.generate(SHORT)).text != (await generator.generate(cold[0])).text

    _run(loaded, ask)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_answer_ends_before_a_stop_string(loaded: TextModel, passes: _Passes, streamed: bool) -> None:
    """It goes across the border of two words, and so of two tokens."""

    async def ask(generator: LocalGenerator) -> None:
        whole = (await generator.generate(SHORT)).text
        place = whole.index(" ", 10) - 1
        stop = whole[place : place + 3]
        request = SHORT.model_copy(update={"stop": ("never written", stop)})
        expected = whole[: whole.index(stop)]
        passes.count = 0
        if streamed:
            assert "".join([piece async for piece in generator.stream(request)]) == expected
        else:
            result = await generator.generate(request)
            assert (result.text, result.finish_reason) == (expected, "stop")
        assert passes.count < SHORT.max_tokens

    _run(loaded, ask)


def test_the_models_own_end_is_a_stop(loaded: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(generator: LocalGenerator) -> None:
        cold = SHORT.model_copy(update={"temperature": 0.0})
        whole = await generator.generate(cold)
        second = loaded.tokenizer(whole.text)["input_ids"][1]
        monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", [second])
        result = await generator.generate(cold)
        assert result.finish_reason == "stop"
        assert (result.completion_tokens or 0) < (whole.completion_tokens or 0)

    _run(loaded, ask)


@pytest.mark.parametrize("leave", ["close", "cancel"])
def test_what_nobody_reads_is_not_written(loaded: TextModel, passes: _Passes, leave: str) -> None:
    passes.free = HELD

    async def ask(generator: LocalGenerator) -> None:
        if leave == "close":
            async with aclosing(generator.stream(ENDLESS)) as stream:
                await anext(stream)
        else:
            task = asyncio.create_task(generator.generate(ENDLESS))
            while not passes.count:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        passes.gate.set()
        # One thread writes: this answer comes when the other has ended.
        await generator.generate(SHORT)
        assert passes.count <= HELD + SHORT.max_tokens

    _run(loaded, ask)


def test_no_more_than_the_queue_wait(loaded: TextModel, passes: _Passes) -> None:
    passes.free = HELD

    async def ask(generator: LocalGenerator) -> None:
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(aclosing(generator.stream(ENDLESS)))
            await anext(running)
            waiting = asyncio.create_task(generator.generate(ENDLESS))
            while generator._waiting < 2:
                await asyncio.sleep(0.001)
            with pytest.raises(OverloadedError, match="queue is full") as caught:
                await generator.generate(SHORT)
            assert 1 <= caught.value.retry_after <= 60
            # Who leaves the queue makes room in it at once.
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert generator._waiting == 1
            next_one = asyncio.create_task(generator.generate(SHORT))
            while generator._waiting < 2:
                await asyncio.sleep(0.001)
            await running.aclose()
            passes.gate.set()
            assert (await next_one).text

    _run(loaded, ask, queue=1)


def test_answers_do_not_mix(loaded: TextModel) -> None:
    async def ask(generator: LocalGenerator) -> None:
        requests = [SHORT.model_copy(update={"seed": seed}) for seed in range(6)]
        alone = [(await generator.generate(request)).text for request in requests]
        assert [each.text for each in await asyncio.gather(*map(generator.generate, requests))] == alone
        assert len(set(alone)) == 6

    _run(loaded, ask)


def test_closing_breaks_off_what_runs_and_what_waits(loaded: TextModel, passes: _Passes) -> None:
    passes.free = HELD

    async def ask(generator: LocalGenerator) -> None:
        tasks = [asyncio.create_task(generator.generate(ENDLESS)) for _ in range(3)]
        while not passes.count:
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(generator.close())
        while not generator._closing.is_set():
            await asyncio.sleep(0.001)
        passes.gate.set()
        await closing
        outcomes = await asyncio.gather(*tasks, generator.generate(SHORT), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [TemporaryError] * 4
        assert passes.count <= HELD

    _run(loaded, ask)


def test_a_request_that_is_too_long_is_refused_and_not_cut(loaded: TextModel) -> None:
    async def ask(generator: LocalGenerator) -> None:
        with pytest.raises(RefusedRequestError, match=f"sees {LENGTH}"):
            await generator.generate(GenerateRequest(prompt="fox " * LENGTH))
        nearly = GenerateRequest(prompt="the " * (LENGTH - 5) + "the", max_tokens=100)
        assert (await generator.generate(nearly)).completion_tokens == 4

    _run(loaded, ask)


def test_a_fault_of_the_model_ends_the_answer_and_not_the_thread(
    loaded: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError(SHORT.prompt)

    async def ask(generator: LocalGenerator) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(loaded.model, "generate", broken)
            with pytest.raises(TemporaryError, match="RuntimeError") as caught:
                await generator.generate(SHORT)
        assert (SHORT.prompt or "-") not in str(caught.value)
        assert (await generator.generate(SHORT)).text

    _run(loaded, ask)


def test_a_conversation_goes_through_the_chat_template(chat: TextModel) -> None:
    async def ask(generator: LocalGenerator) -> None:
        messages = [Message(role="system", content="be fair"), Message(role="user", content="the price")]
        result = await generator.generate(GenerateRequest(messages=messages, max_tokens=4))
        expected = "system says be fair user says the price assistant says"
        assert result.prompt_tokens == len(chat.tokenizer(expected)["input_ids"])
        with pytest.raises(RefusedRequestError, match="chat template"):
            await generator.generate(GenerateRequest(messages=[Message(role="assistant", content="the price")]))

    _run(chat, ask)


def test_a_model_without_a_template_takes_a_conversation_too(loaded: TextModel) -> None:
    async def ask(generator: LocalGenerator) -> None:
        messages = [Message(role="system", content="be fair"), Message(role="user", content="the price")]
        result = await generator.generate(GenerateRequest(messages=messages, max_tokens=4))
        expected = "system: be fair\nuser: the price\nassistant:"
        assert result.prompt_tokens == len(loaded.tokenizer(expected)["input_ids"])

    _run(loaded, ask)


def test_the_settings_name_the_model(tmp_path: Path) -> None:
    path = save_causal(tmp_path / "writer")
    generator = load_generator(load_settings(device="cpu", inference=InferenceSettings(generate_model=path)))
    assert isinstance(generator, LocalGenerator)
    assert generator.name == "writer"
    asyncio.run(generator.close())
