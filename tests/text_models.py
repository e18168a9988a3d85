"""Tiny transformers models with random weights, and a tokenizer trained on a few sentences: real, made in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXTS = (
    "the quick brown fox jumps over the lazy dog and runs away",
    "a summary says in a few words what a long text says in many",
    "she sells sea shells by the sea shore while he reads the news",
    "the service was slow but the food was good and the price was fair",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m.role == 'assistant' %}{{ raise_exception('no user') }}{% endif %}"
    "{{ m.role }} says {{ m.content }} {% endfor %}{% if add_generation_prompt %}assistant says{% endif %}"
)
_SPECIALS = ["<pad>", "</s>", "<unk>"]


def tokenizer(length: int, chat_template: str | None = None) -> Any:
    """A byte-pair tokenizer of ASCII words that states `length` as the model's."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.decoder = decoders.Metaspace()
    alphabet = [chr(code) for code in range(33, 127)]
    trained.train_from_iterator(
        TEXTS * 4,
        trainers.BpeTrainer(vocab_size=300, special_tokens=_SPECIALS, initial_alphabet=alphabet, show_progress=False),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
        chat_template=chat_template,
    )


def save_classifier(folder: Path, labels: list[str], logits: list[float] | None = None) -> str:
    """A BERT of 64 tokens with these labels. With `logits` it answers these to whatever it reads."""
    words = tokenizer(64)
    torch.manual_seed(7)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        initializer_range=1.0,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    model = transformers.BertForSequenceClassification(config)
    if logits is not None:
        model.classifier.weight.data.zero_()
        model.classifier.bias.data = torch.tensor(logits)
    return _save(folder, model, words)


def save_seq2seq(folder: Path, length: int = 64) -> str:
    """A T5 that sees `length` tokens."""
    words = tokenizer(length)
    torch.manual_seed(7)
    config = transformers.T5Config(
        vocab_size=len(words),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=words.pad_token_id,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
    )
    return _save(folder, transformers.T5ForConditionalGeneration(config), words)


def save_causal(folder: Path, length: int = 256, chat_template: str | None = None) -> str:
    """A GPT-2 that sees `length` tokens and ends no text by itself."""
    words = tokenizer(length, chat_template)
    torch.manual_seed(7)
    config = transformers.GPT2Config(
        vocab_size=len(words),
        n_positions=length,
        n_embd=16,
        n_layer=1,
        n_head=2,
        initializer_range=1.0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=words.pad_token_id,
    )
    return _save(folder, transformers.GPT2LMHeadModel(config), words)


def _save(folder: Path, model: Any, words: Any) -> str:
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)
