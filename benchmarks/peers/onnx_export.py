"""Write a BERT as ONNX: `python -m benchmarks.peers.onnx_export MODEL FILE SITE`.

Runs in our environment, which has torch, and borrows onnx and onnxscript from the peers' (SITE).
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AutoModel


class Hidden(torch.nn.Module):
    """Only the last layer's hidden states, by positional inputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        """Shape (texts, tokens, width)."""
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state


def main() -> None:
    """Export with any number of texts and tokens."""
    model, file, site = sys.argv[1:]
    # Behind our own packages, so that only what we lack comes from there.
    sys.path.append(site)
    hidden = Hidden(AutoModel.from_pretrained(model, local_files_only=True, attn_implementation="eager")).eval()
    example = tuple(torch.ones(2, 7, dtype=torch.long) for _ in range(3))
    names = ("input_ids", "attention_mask", "token_type_ids")
    texts, tokens = torch.export.Dim("texts", min=1, max=4096), torch.export.Dim("tokens", min=2, max=512)
    torch.onnx.export(
        hidden,
        example,
        file,
        input_names=list(names),
        output_names=["last_hidden_state"],
        dynamo=True,
        dynamic_shapes=({0: texts, 1: tokens},) * 3,
        external_data=False,
    )


if __name__ == "__main__":
    main()
