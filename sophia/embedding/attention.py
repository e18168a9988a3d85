"""Attention over packed sequences: the texts of a pass lie one behind the other, without padding between them.

Registered with transformers under `PACKED`, so that any model which uses its attention interface computes this way
without being changed. Lengths come as the keyword arguments of transformers' own flattened inputs (`cu_seq_lens_q`,
`max_length_q`). On CUDA in half precision torch's variable-length kernel does it in one launch; on a CPU each run of
equally long texts is one call of scaled-dot-product attention. What a model asks for beyond that (soft caps, sinks,
biases) is an error here, so that it is computed in padded batches instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

PACKED = "sophia_packed"
# The variable-length kernel is Flash Attention, which begins with this compute capability.
VARLEN_CAPABILITY = (8, 0)
# What models hand to every attention function and what changes nothing here: no training, no cache, one row.
_WITHOUT_EFFECT = frozenset(
    {"cu_seq_lens_k", "deterministic", "dropout", "max_length_k", "output_attentions", "output_hidden_states"}
    | {"position_ids", "return_dict", "seq_idx", "use_cache"}
)


def register() -> None:
    """Make `PACKED` known to transformers; may be called again. It has no mask: lengths say which token sees which."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)


def runs_of(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of equal lengths, as (number of texts, their length). Few when the texts are sorted by length."""
    return [(len(list(group)), length) for length, group in groupby(lengths)]


def packed_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    cu_seq_lens_q: Any,
    max_length_q: int,
    sophia_runs: Sequence[tuple[int, int]] | None = None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Any, None]:
    """Attention within each text of a packed pass.

    Args:
        query: shape (1, heads, tokens, width).
        key, value: the same, or with a divisor of that many heads.
        attention_mask: None; a model that makes one of its own is not packed.
        cu_seq_lens_q: where each text begins, and the end of the last; shape (texts + 1,), int32.
        max_length_q: tokens of the longest text.
        sophia_runs: of `runs_of`, where attention is computed a run at a time; None where the kernel does all.
        is_causal: whether a token sees only what lies before it; the module's own attribute if None.
        sliding_window: a token sees those at a distance below it; all if None.

    Returns:
        Shape (1, tokens, heads, width).

    Raises:
        ValueError: the model wants attention of another kind.
    """
    asked = [name for name, wish in others.items() if wish is not None and name not in _WITHOUT_EFFECT]
    if attention_mask is not None or asked:
        raise ValueError(f"packed attention has no {', '.join(asked) or 'mask'}")
    causal = bool(module.is_causal if is_causal is None else is_causal)
    reach = -1 if sliding_window is None else sliding_window - 1
    if sophia_runs is None:
        from torch.nn.attention.varlen import varlen_attn

        packed = [each[0].transpose(0, 1) for each in (query, key, value)]
        bounds, longest, window = cu_seq_lens_q, max_length_q, (reach, 0 if causal else reach)
        out = varlen_attn(*packed, bounds, bounds, longest, longest, scale=scaling, window_size=window, enable_gqa=True)
        return out.unsqueeze(0), None

    import torch

    heads, tokens, width = query.shape[1:]
    out = query.new_empty(1, tokens, heads, width)
    start = 0
    for number, length in sophia_runs:
        end = start + number * length
        # (heads, run, width) to (texts, heads, length, width)
        part = [each[0, :, start:end].unflatten(1, (number, length)).transpose(0, 1) for each in (query, key, value)]
        mask = _window(length, reach, causal) if 0 <= reach < length - 1 else None
        seen = torch.nn.functional.scaled_dot_product_attention(
            *part, attn_mask=mask, is_causal=causal and mask is None, scale=scaling, enable_gqa=len(key[0]) != heads
        )
        out[0, start:end] = seen.transpose(1, 2).reshape(end - start, heads, width)
        start = end
    return out, None


def _window(length: int, reach: int, causal: bool) -> Any:
    """Which token of a text sees which; shape (length, length)."""
    import torch

    places = torch.arange(length)
    ahead = places - places[:, None]
    return (ahead.abs() <= reach) & ((ahead <= 0) | (not causal))
