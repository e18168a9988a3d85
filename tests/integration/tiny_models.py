"""Small models with random weights, of the architectures that embedding models have, saved as sentence-transformers
saves them. Their weights are large, so that a wrong position or a token too many shows in the vectors.

Heavy libraries are imported when a model is made, not when tests are collected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sophia.catalog.models import EmbeddingModel
from sophia.embedding.agreement import PROBES

DIMENSION = 32
_COMMON: dict[str, Any] = {
    "vocab_size": 400,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_TRANSFORMER: dict[str, Any] = _COMMON | {
    "hidden_size": DIMENSION,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    # RoBERTa's positions begin behind the padding token.
    "max_position_embeddings": 300,
}
# Dropout must have no effect.
_ENCODER = _TRANSFORMER | {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
_DECODER = _TRANSFORMER | {"num_key_value_heads": 2, "head_dim": 8, "attention_dropout": 0.3}
_DISTILBERT = {"dim": DIMENSION, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 300}
# One layer sees everything, the other a window that the longer probes leave.
_MODERNBERT = {"local_attention": 16, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2}
_T5 = {"d_model": DIMENSION, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "initializer_factor": 3.0}
# The transformers classes of model and configuration, and the configuration.
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", _ENCODER),
    "roberta": ("RobertaModel", "RobertaConfig", _ENCODER),
    "xlm-roberta": ("XLMRobertaModel", "XLMRobertaConfig", _ENCODER),
    "distilbert": ("DistilBertModel", "DistilBertConfig", _COMMON | _DISTILBERT),
    "mpnet": ("MPNetModel", "MPNetConfig", _ENCODER),
    "modernbert": ("ModernBertModel", "ModernBertConfig", _TRANSFORMER | _MODERNBERT),
    # The window of the published models.
    "modernbert-wide": ("ModernBertModel", "ModernBertConfig", _TRANSFORMER | _MODERNBERT | {"local_attention": 128}),
    "qwen3": ("Qwen3Model", "Qwen3Config", _DECODER),
    "llama": ("LlamaModel", "LlamaConfig", _DECODER),
    "mistral-window": ("MistralModel", "MistralConfig", _DECODER | {"sliding_window": 16}),
    "gemma2-softcap": ("Gemma2Model", "Gemma2Config", _DECODER | {"attn_logit_softcapping": 5.0}),
    "t5": ("T5EncoderModel", "T5Config", _COMMON | _T5),
}


def _tokenizer(specials: bool) -> Any:
    """Byte-level BPE, with or without specials around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_COMMON["vocab_size"],
        show_progress=False,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(PROBES, trainer)
    if specials:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return tokenizer


def save(
    folder: Path,
    architecture: str,
    pooling: str | Sequence[str] = "mean",
    *,
    dense: bool = False,
    normalize: bool = False,
    specials: bool = True,
    truncation: str = "right",
    dtype: str = "float32",
    max_tokens: int = 256,
    weights: float = 0.2,
    change: Callable[[Any], None] = lambda _: None,
) -> EmbeddingModel:
    """Save such a model, and return its catalog entry.

    `weights` is how large they are; `change` gets the `SentenceTransformer` before it is saved.
    """
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    torch.manual_seed(7)
    base_class, config_class, fields = ARCHITECTURES[architecture]
    base = getattr(transformers, base_class)(
        getattr(transformers, config_class)(**fields | {"initializer_range": weights})
    )
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if "bias" in name:
                parameter.normal_(0, weights)
    base.to(getattr(torch, dtype)).save_pretrained(folder / "base")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(specials),
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=max_tokens,
        model_input_names=["input_ids", "attention_mask"],
        truncation_side=truncation,
    ).save_pretrained(folder / "base")
    modules: list[Any] = [
        Transformer(str(folder / "base"), max_seq_length=max_tokens, model_kwargs={"dtype": dtype}),
        Pooling(DIMENSION, pooling),  # type: ignore[arg-type]
    ]
    width = modules[-1].get_embedding_dimension()
    if dense:
        modules.append(Dense(width, 24))
        width = 24
    if normalize:
        modules.append(Normalize())
    model = SentenceTransformer(modules=modules, device="cpu")
    change(model)
    model.save(str(folder / "model"), create_model_card=False)
    return EmbeddingModel(
        name="tiny",
        description="A small model with random weights.",
        provider="sentence-transformers",
        path=str(folder / "model"),
        dimension=width,
        max_tokens=max_tokens,
        version="1",
    )
