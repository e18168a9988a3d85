"""What the generators have in common: the request, which of them is loaded, and stop strings."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sophia.errors import ConfigurationError
from sophia.services.inference.generate import load_generator
from sophia.services.inference.schemas import GenerateRequest, Message
from sophia.services.inference.stops import StopFilter
from sophia.settings import InferenceSettings, load_settings
from tests.text_models import save_classifier


def test_a_prompt_is_what_a_user_says() -> None:
    assert GenerateRequest(prompt="hello").conversation() == [{"role": "user", "content": "hello"}]
    messages = [Message(role="system", content="be brief"), Message(role="user", content="hello")]
    assert GenerateRequest(messages=messages).conversation() == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": "a", "messages": [{"role": "user", "content": "a"}]},
        {"prompt": ""},
        {"messages": []},
        {"messages": [{"role": "nobody", "content": "a"}]},
        {"prompt": "a", "max_tokens": 0},
        {"prompt": "a", "temperature": -0.1},
        {"prompt": "a", "temperature": float("nan")},
        {"prompt": "a", "stop": [""]},
        {"prompt": "a", "seed": -1},
        {"prompt": "a", "seed": 2**63},
        {"prompt": "a", "unknown": 1},
    ],
)
def test_requests_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GenerateRequest.model_validate(fields)


def test_without_settings_there_is_no_generator() -> None:
    assert load_generator(load_settings()) is None


@pytest.mark.parametrize(
    ("inference", "variable"),
    [
        (InferenceSettings(generate_url="http://127.0.0.1:1/v1"), "GENERATE_MODEL"),
        (InferenceSettings(generate_url="127.0.0.1/v1", generate_model="m"), "GENERATE_URL"),
        (InferenceSettings(generate_url="file:///etc", generate_model="m"), "GENERATE_URL"),
        (InferenceSettings(generate_url="http://me:secret@127.0.0.1/v1", generate_model="m"), "GENERATE_URL"),
        (InferenceSettings(generate_url="http://[::1", generate_model="m"), "GENERATE_URL"),
        (InferenceSettings(generate_model="/nowhere/at/all"), "GENERATE_MODEL"),
    ],
)
def test_settings_that_cannot_be_used_are_named(inference: InferenceSettings, variable: str) -> None:
    with pytest.raises(ConfigurationError, match=f"SOPHIA_INFERENCE__{variable}") as caught:
        load_generator(load_settings(inference=inference))
    assert "secret" not in str(caught.value)


def test_a_model_of_another_task_is_refused(tmp_path: Path) -> None:
    path = save_classifier(tmp_path, ["a", "b"])
    with pytest.raises(ConfigurationError, match="SOPHIA_INFERENCE__GENERATE_MODEL"):
        load_generator(load_settings(inference=InferenceSettings(generate_model=path)))


def test_the_modules_load_nothing_heavy() -> None:
    modules = ("classify", "sentiment", "summarize", "generate", "endpoint_generator", "text_models", "stops")
    code = "import sys\n" + "".join(f"import sophia.services.inference.{name}\n" for name in modules)
    code += "from sophia.settings import load_settings\n"
    code += "sophia.services.inference.sentiment.load_sentiment(load_settings()).analyze(['good'])\n"
    code += "print({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def _filtered(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    filter_ = StopFilter(stops)
    text = "".join(filter_.feed(piece) for piece in pieces)
    return text + filter_.end(), filter_.stopped


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        ([], "abc", "abc"),
        (["b"], "abc", "a"),
        (["a"], "abc", ""),
        (["bcd"], "abc", "abc"),
        (["bc", "abcd"], "abcd", "a"),
        (["aab"], "aaab", "a"),
        (["x", "\n\n"], "one\n\ntwo", "one"),
        (["ab", "ababc"], "ababc", ""),
    ],
)
def test_text_ends_before_the_first_stop_string_however_it_comes(stops: list[str], text: str, expected: str) -> None:
    for cuts in itertools.product([False, True], repeat=max(0, len(text) - 1)):
        pieces = [text[0]]
        for letter, cut in zip(text[1:], cuts, strict=True):
            pieces = [*pieces, letter] if cut else [*pieces[:-1], pieces[-1] + letter]
        assert _filtered(stops, pieces) == (expected, expected != text), pieces


@given(st.lists(st.text("ab", max_size=6), max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_no_stop_string_passes_and_nothing_else_is_held_back(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    text, stopped = _filtered(stops, pieces)
    assert stopped == any(stop in whole for stop in stops)
    assert whole.startswith(text)
    assert stopped or text == whole
    assert not any(stop in text for stop in stops)
