"""Loads local text models with transformers, for sentiment, summaries and generation.

Nothing is downloaded unless SOPHIA_HUB allows it, no code of a model's folder is run, and a model without weights for
its task is refused: transformers would make some up and only warn.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sophia.errors import ConfigurationError
from sophia.settings import Settings

Task = Literal["classification", "summary", "generation"]
# Where neither the tokenizer nor the model states a length: the length that T5 was trained with.
DEFAULT_LENGTH = 512
# Tokenizers without a length state 1e30.
_NO_LENGTH = 10**9


@dataclass(frozen=True, slots=True)
class TextModel:
    """A model and its tokenizer.

    Attributes:
        name: hub name, or name of the folder.
        model: a transformers model in evaluation mode, on its device.
        tokenizer: its transformers tokenizer.
        length: most tokens that it sees at once, specials included.
    """

    name: str
    model: Any
    tokenizer: Any
    length: int


def load_text_model(task: Task, path: str, settings: Settings, variable: str) -> TextModel:
    """Load a model.

    Args:
        path: folder or hub name.
        variable: the setting that names the model, for messages.

    Raises:
        ConfigurationError: it is not there, may not be downloaded, or is no model of this task.
    """
    if not settings.hub:
        # Read by huggingface_hub when it is imported, which is below.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    import transformers
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=not settings.hub)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=not settings.hub)
        loader = getattr(transformers, _auto_class(task, config))
        model, report = loader.from_pretrained(
            path, config=config, local_files_only=not settings.hub, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        hint = "" if settings.hub else "; set SOPHIA_HUB=true to allow a download, or name a local folder"
        raise ConfigurationError(f"{variable}: the model cannot be loaded from {path!r}: {error}{hint}") from error
    if report["missing_keys"]:
        raise ConfigurationError(
            f"{variable}: {path!r} has no weights for {task}: {', '.join(sorted(report['missing_keys'])[:3])}; "
            f"name a model that was trained for it"
        )
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(path)
    return TextModel(
        name=folder.name if folder.is_dir() else path,
        model=model.eval().to(device),
        tokenizer=tokenizer,
        length=model_length(config, tokenizer),
    )


def model_length(config: Any, tokenizer: Any) -> int:
    """Most tokens that a model sees at once, by what its configuration and its tokenizer state."""
    stated = [tokenizer.model_max_length] if tokenizer.model_max_length < _NO_LENGTH else []
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        # RoBERTa and its kin count positions from behind the padding token's.
        offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
        stated.append(positions - offset)
    return min(stated, default=DEFAULT_LENGTH)


def padding_id(tokenizer: Any) -> int | None:
    """The token that fills up a batch; the one that ends a text where a tokenizer has none for it."""
    found: int | None = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return found


def _auto_class(task: Task, config: Any) -> str:
    if task == "classification":
        return "AutoModelForSequenceClassification"
    if task == "summary" and config.is_encoder_decoder:
        return "AutoModelForSeq2SeqLM"
    return "AutoModelForCausalLM"
