"""Linear layers in oneDNN's own layout, which is where a forward pass on a CPU spends four fifths of its time.

torch multiplies in float32 by the matrix library that it was built with, which is not the fastest on every CPU, copies
the bias first, and brings weights into oneDNN's layout anew for each product in bfloat16. Here the weights are brought
into it once. Measured on one Zen 4 core for MiniLM's shapes: 108 instead of 76 to 96 GFLOP/s in float32, 200 instead
of 170 to 196 in bfloat16.
"""

from __future__ import annotations

import platform
from functools import partial
from typing import Any


def prepack(model: Any) -> None:
    """Compute the linear layers of a `torch.nn.Module` on the CPU with prepacked weights from now on; in place.

    The layers keep no other copy of their weights: the module can be computed, neither trained nor saved. Nothing
    changes where torch lacks oneDNN, and on CPUs for which this is not known to be faster.
    """
    import torch

    # What torch.compile uses for frozen models; it has no public name.
    operations: Any = torch.ops.mkldnn
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return
    if not _usable(torch, operations):
        return
    with torch.no_grad():
        for layer in model.modules():
            # Not of what is derived from it, whose forward may do more.
            if type(layer) is torch.nn.Linear and not layer.weight.is_mkldnn:
                packed = operations._reorder_linear_weight(layer.weight, None)
                layer.weight = torch.nn.Parameter(packed, requires_grad=False)
                layer.forward = partial(_linear, operations._linear_pointwise, packed, layer.bias)


def _usable(torch: Any, operations: Any) -> bool:
    """Whether the operations are there and still are what they were: another release of torch may change them."""
    layer = torch.nn.Linear(8, 8)
    values = torch.ones(2, 8)
    try:
        with torch.no_grad():
            packed = operations._reorder_linear_weight(layer.weight, None)
            found = _linear(operations._linear_pointwise, packed, layer.bias, values)
            return bool(torch.allclose(found, layer(values), atol=1e-5))
    except (AttributeError, RuntimeError, TypeError):
        return False


def _linear(operation: Any, weight: Any, bias: Any, values: Any) -> Any:
    return operation(values, weight, bias, "none", [], "")
