"""Attention over packed sequences: the texts of a pass lie one behind the other, without padding between them.

Registered with transformers under `PACKED`, so that any model which uses its attention interface computes this way
without being changed. Lengths come as the keyword arguments of transformers' own flattened inputs (`cu_seq_lens_q`,
`max_length_q`). On CUDA in half precision torch's variable-length kernel does it in one launch; on a CPU each run of
equally long texts is one call of scaled-dot-product attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

PACKED = "sophia_packed"
# The variable-length kernel is Flash Attention, which begins with this compute capability.
VARLEN_CAPABILITY = (8, 0)


def register() -> None:
    """Make `PACKED` known to transformers; may be called again."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)
    # No mask: which token sees which is said by the lengths.
    ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED, _no_mask)


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
    scaling: float | None = None,
    cu_seq_lens_q: Any,
    max_length_q: int,
    sophia_runs: Sequence[tuple[int, int]] | None = None,
    **_others: Any,
) -> tuple[Any, None]:
    """Bidirectional attention within each text of a packed pass.

    Args:
        query, key, value: shape (1, heads, tokens, width).
        cu_seq_lens_q: where each text begins, and the end of the last; shape (texts + 1,), int32.
        max_length_q: tokens of the longest text.
        sophia_runs: of `runs_of`, where attention is computed a run at a time; None where the kernel does all.

    Returns:
        Shape (1, tokens, heads, width).
    """
    if sophia_runs is None:
        from torch.nn.attention.varlen import varlen_attn

        packed = [each[0].transpose(0, 1) for each in (query, key, value)]
        out = varlen_attn(*packed, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling)
        return out.unsqueeze(0), None

    import torch

    heads, tokens, width = query.shape[1:]
    out = query.new_empty(1, tokens, heads, width)
    start = 0
    for number, length in sophia_runs:
        end = start + number * length
        # (heads, run, width) to (texts, heads, length, width)
        part = [each[0, :, start:end].unflatten(1, (number, length)).transpose(0, 1) for each in (query, key, value)]
        seen = torch.nn.functional.scaled_dot_product_attention(*part, scale=scaling)
        out[0, start:end] = seen.transpose(1, 2).reshape(end - start, heads, width)
        start = end
    return out, None


def _no_mask(*_args: Any, **_others: Any) -> None:
    return None
