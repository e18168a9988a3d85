"""How fast a device could be at best: its measured matrix products, and how many of them a token of a model needs.

A transformer's time goes into products of matrices. How many floating-point operations a second these reach depends on
device, library and number format, and is measured rather than read off a data sheet; what embedding reaches of that
is its share of the ceiling. Another library's products may be a little faster than torch's: a share may exceed 1.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cache
from time import perf_counter
from typing import Any

# How torch calls the number formats that its matrix products have.
NUMBERS = ("float32", "bfloat16", "float16")
# Rows and columns of the measured matrices: large enough for the device's best, and done within milliseconds.
SIZES = {"cpu": 768, "cuda": 8_192}
MEASURE_SECONDS = 0.05
LEAST_RUNS = 3


@dataclass(frozen=True, slots=True)
class TransformerCost:
    """Floating-point operations of a transformer's matrix products.

    Attributes:
        linear: of its linear layers, a token.
        attention: of attention, a token and a token of the text that it looks at.
    """

    linear: int
    attention: int

    def flop_per_token(self, length: float) -> float:
        """Of a token in a text of `length` tokens."""
        return self.linear + self.attention * length


def transformer_cost(model: Any) -> TransformerCost | None:
    """The cost of a transformers model, from the sizes of its linear layers and its configuration.

    A pooler is left out, since it sees one token of a text. None for a model without layers of attention.
    """
    import torch

    config = getattr(model, "config", None)
    layers, hidden = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if not layers or not hidden:
        return None
    weights = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "pooler" not in name.split(".")
    )
    # Two operations a weight; two products of attention, each of two operations a component.
    return TransformerCost(linear=2 * weights, attention=4 * layers * hidden)


def number_format(backend: str) -> str | None:
    """The number format that a backend's name says; None if torch has no matrix products in it."""
    return next((word for word in backend.split() if word in NUMBERS), None)


@cache
def matrix_ceiling(device: str, number: str) -> float | None:
    """Floating-point operations a second of this device's matrix products: the median of 50 ms, once a process.

    Args:
        device: `cpu` or `cuda`.
        number: one of `NUMBERS`.

    Returns:
        None where the device's memory is full.
    """
    import torch

    size = SIZES[device]
    seconds: list[float] = []
    try:
        with torch.inference_mode():
            left, right = (torch.randn(size, size, device=device).to(getattr(torch, number)) for _ in range(2))
            # The first one chooses and loads what computes.
            torch.mm(left, right)
            while len(seconds) < LEAST_RUNS or sum(seconds) < MEASURE_SECONDS:
                _wait_for(device)
                started = perf_counter()
                torch.mm(left, right)
                _wait_for(device)
                seconds.append(perf_counter() - started)
    except torch.OutOfMemoryError:
        return None
    return 2.0 * size**3 / statistics.median(seconds)


def _wait_for(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
