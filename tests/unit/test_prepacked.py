"""Linear layers with prepacked weights compute what they did."""

from __future__ import annotations

import copy
import platform
from typing import Any

import pytest

from sophia.embedding import linear
from sophia.embedding.linear import prepack


@pytest.fixture
def torch() -> Any:
    import torch

    return torch


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="layers are prepacked on x86-64 only")
@pytest.mark.parametrize("number", ["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 24), (1, 333, 24), (5, 7, 24), (9, 24)])
def test_prepacked_layer_computes_the_same(torch: Any, number: str, bias: bool, shape: tuple[int, ...]) -> None:
    dtype = getattr(torch, number)
    if dtype == torch.bfloat16 and not torch.cpu.get_capabilities().get("avx512_bf16"):
        pytest.skip("this CPU has no bfloat16 arithmetic")
    torch.manual_seed(3)
    plain = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=bias), torch.nn.ReLU()).to(dtype)
    ours = copy.deepcopy(plain)
    prepack(ours)
    # A second way to compute the same model may follow the first.
    prepack(ours)
    values = torch.randn(shape).to(dtype)
    with torch.inference_mode():
        difference = (ours(values).float() - plain(values).float()).abs().max()
    assert difference <= (1e-5 if number == "float32" else 0.02)
    assert ours[0].weight.is_mkldnn, "it was left as it is"


def test_layers_of_another_kind_stay_as_they_are(torch: Any) -> None:
    class Doubled(torch.nn.Linear):  # type: ignore[misc]
        def forward(self, values: Any) -> Any:
            return 2 * super().forward(values)

    model = torch.nn.Sequential(Doubled(4, 4))
    values = torch.ones(1, 4)
    before = model(values)
    prepack(model)
    assert torch.equal(model(values), before)


def test_without_onednn_nothing_changes(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = torch.nn.Linear(4, 4)
    prepack(model)
    assert not model.weight.is_mkldnn


@pytest.mark.parametrize("fault", [TypeError, RuntimeError])
def test_operations_of_another_release_are_left_alone(
    torch: Any, monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    def changed(*arguments: Any) -> Any:
        raise fault("it takes other arguments now")

    monkeypatch.setattr(linear, "_linear", changed)
    model = torch.nn.Linear(4, 4)
    prepack(model)
    assert not model.weight.is_mkldnn
