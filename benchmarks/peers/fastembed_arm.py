"""The arms `fastembed` and `onnxruntime` of `benchmarks.embedding`, in the peers' own environment.

`fastembed` is the package as it comes: batches of 256 in the order of arrival. `onnxruntime` is the way that
sentence-transformers takes with it: sorted by length, batches of 32, padded to the longest. Both read the same ONNX
file in float32, which is written from the model's weights beforehand.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embedding_commands import serve


class Fastembed:
    """`TextEmbedding.embed` with a model of our own."""

    def __init__(self, job: dict[str, Any]) -> None:
        import fastembed
        from fastembed.common.model_description import ModelSource, PoolingType

        fastembed.TextEmbedding.add_custom_model(
            model="benchmark",
            pooling=PoolingType.MEAN,
            normalization=True,
            sources=ModelSource(hf="benchmark"),
            dim=job["dimension"],
            model_file="model.onnx",
        )
        self._model = fastembed.TextEmbedding("benchmark", specific_model_path=job["onnx"], threads=1)
        self.backend = f"fastembed {fastembed.__version__}"

    def embed(self, texts: list[str]) -> Any:
        """Vectors of the texts."""
        return np.stack(list(self._model.embed(texts)))

    def figures(self) -> dict[str, Any]:
        """Nothing beyond time."""
        return {}


class Onnxruntime:
    """A session, with sorting and batches as sentence-transformers makes them."""

    def __init__(self, job: dict[str, Any]) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            Path(job["onnx"]) / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(Path(job["model"]) / "tokenizer.json"))
        self._tokenizer.enable_truncation(job["length"])
        self._tokenizer.enable_padding()
        self.backend = f"onnxruntime {onnxruntime.__version__} float32"

    def embed(self, texts: list[str]) -> Any:
        """Vectors of the texts."""
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        vectors = [np.empty(0)] * len(texts)
        for start in range(0, len(order), 32):
            places = order[start : start + 32]
            encodings = self._tokenizer.encode_batch([texts[i] for i in places])
            mask = np.array([e.attention_mask for e in encodings], dtype=np.int64)
            inputs = {
                "input_ids": np.array([e.ids for e in encodings], dtype=np.int64),
                "attention_mask": mask,
                "token_type_ids": np.zeros_like(mask),
            }
            names = {each.name for each in self._session.get_inputs()}
            hidden = self._session.run(None, {k: v for k, v in inputs.items() if k in names})[0]
            mean = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            for place, vector in zip(places, mean / np.linalg.norm(mean, axis=1, keepdims=True), strict=True):
                vectors[place] = vector
        return np.stack(vectors)

    def figures(self) -> dict[str, Any]:
        """Nothing beyond time."""
        return {}


ARMS = {"fastembed": Fastembed, "onnxruntime": Onnxruntime}


if __name__ == "__main__":
    serve(ARMS[sys.argv[1]])
