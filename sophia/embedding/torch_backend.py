"""Forward passes by torch, packed without padding or padded.

=========  ======  =========================================================================================
precision  device  how
=========  ======  =========================================================================================
exact      cpu     float32, packed; attention a run of equal lengths at a time
exact      cuda    float32, padded, scaled-dot-product attention
fast       cpu     bfloat16, packed; float32 where the CPU has no bfloat16 arithmetic
fast       cuda    bfloat16, packed, variable-length kernel; before compute capability 8.0 float16, padded
=========  ======  =========================================================================================

The modules behind the transformer (pooling, dense layers) always compute in float32.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from sophia.catalog.models import Precision
from sophia.embedding import attention
from sophia.embedding.base import DeviceMemoryError, Ids, Vectors
from sophia.embedding.linear import prepack
from sophia.errors import ConfigurationError

# First and largest token budgets of the search, by device. On a CPU the activations of more than a few thousand tokens
# fall out of the cache; a GPU wants tens of thousands.
BUDGETS: dict[str, tuple[int, int]] = {"cpu": (1_024, 4_096), "cuda": (8_192, 131_072)}
# How memory is said to be used up by those who have no type for it: torch's CPU allocator, pinned memory, cuBLAS.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


class TorchBackend:
    """Implements `Backend`.

    Args:
        loaded: a `SentenceTransformer` in float32 on its device. It must not be used elsewhere from now on: the
            attention of its model is set anew.
        packed: compute without padding, where device and number format can.
    """

    def __init__(self, loaded: Any, precision: Precision, *, packed: bool = True) -> None:
        import torch

        if precision == "int8":
            raise ConfigurationError("precision int8 needs the OpenVINO backend: pip install '.[openvino]'")
        self._torch: Any = torch
        self._target = loaded.device
        self.device: Literal["cpu", "cuda"] = "cuda" if loaded.device.type == "cuda" else "cpu"
        self.first_budget, self.largest_budget = BUDGETS[self.device]
        dtype = self._dtype(precision)
        self.padded = not packed or (self.device == "cuda" and dtype != torch.bfloat16)
        self._transformer, *self._rest = list(loaded)
        if dtype != torch.float32:
            self._transformer = copy.deepcopy(self._transformer)
            for parameter in self._transformer.parameters():
                # Not what else the model keeps: frequencies of rotary positions need their digits.
                parameter.data = parameter.data.to(dtype)
        model = self._transformer.model
        if self.device == "cpu":
            prepack(self._transformer)
        # A decoder would keep the keys and values of every layer for a next token that never comes.
        model.config.use_cache = False
        if self.padded:
            model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
        else:
            attention.register()
            model.set_attn_implementation(attention.PACKED)
        self._padding_position = _padding_position(model)
        self._pad = loaded.tokenizer.pad_token_id or 0
        self._typed = "token_type_ids" in loaded.tokenizer.model_input_names
        where = torch.cuda.get_device_name(self._target) if self.device == "cuda" else "cpu"
        number = str(dtype).removeprefix("torch.")
        self.name = f"torch {torch.__version__} {where} {number} {'padded' if self.padded else 'packed'}"

    def start(self, batch: Sequence[Ids]) -> Callable[[], Vectors]:
        """See `Backend.start`."""
        torch = self._torch
        with self._memory(), torch.inference_mode():
            features = self._transformer(self._padded(batch) if self.padded else self._packed(batch))
            features["token_embeddings"] = features["token_embeddings"].float()
            for module in self._rest:
                features = module(features)
            unit = torch.nn.functional.normalize(features["sentence_embedding"].float(), dim=1)
            if self.device == "cpu":
                result: Vectors = unit.numpy()
                return lambda: result
            landing = torch.empty(unit.shape, dtype=torch.float32, pin_memory=True)
            landing.copy_(unit, non_blocking=True)
            # On the stream of the model's device, which need not be the current one.
            landed = torch.cuda.current_stream(unit.device).record_event()

        def wait() -> Vectors:
            with self._memory():
                landed.synchronize()
            vectors: Vectors = landing.numpy()
            return vectors

        return wait

    def _dtype(self, precision: Precision) -> Any:
        torch = self._torch
        if precision == "exact":
            return torch.float32
        if self.device == "cuda":
            able = torch.cuda.get_device_capability(self._target) >= attention.VARLEN_CAPABILITY
            return torch.bfloat16 if able else torch.float16
        # Without arithmetic of its own, bfloat16 is emulated: many times slower than float32 and less exact.
        abilities = torch.cpu.get_capabilities()
        return torch.bfloat16 if abilities.get("avx512_bf16") or abilities.get("amx_bf16") else torch.float32

    def _packed(self, batch: Sequence[Ids]) -> dict[str, Any]:
        """One row of all tokens, with transformers' names for flattened inputs."""
        lengths = [len(ids) for ids in batch]
        bounds = np.cumsum([0, *lengths], dtype=np.int32)
        positions = np.concatenate([self._positions(ids) for ids in batch])
        features: dict[str, Any] = {
            "input_ids": self._tensor(np.concatenate(batch)[None]),
            "position_ids": self._tensor(positions[None]),
            "cu_seq_lens_q": self._tensor(bounds),
            "cu_seq_lens_k": self._tensor(bounds),
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
            # Which text a token belongs to: without it pooling works it out, and a GPU has to be waited for.
            "seq_idx": self._tensor(np.repeat(np.arange(len(batch)), lengths)[None]),
        }
        if self._typed:
            features["token_type_ids"] = self._torch.zeros_like(features["input_ids"])
        if self.device == "cpu":
            features["sophia_runs"] = attention.runs_of(lengths)
        return features

    def _positions(self, ids: Ids) -> Any:
        """Position of each token of a text, as the model itself counts them."""
        if self._padding_position is None:
            return np.arange(len(ids))
        # Text may spell out a padding token, which that family counts as none.
        seen = ids != self._padding_position
        return np.cumsum(seen) * seen + self._padding_position

    def _padded(self, batch: Sequence[Ids]) -> dict[str, Any]:
        ids = np.full((len(batch), max(map(len, batch))), self._pad, dtype=np.int32)
        mask = np.zeros(ids.shape, dtype=np.int64)
        for row, each in enumerate(batch):
            ids[row, : len(each)] = each
            mask[row, : len(each)] = 1
        features = {"input_ids": self._tensor(ids), "attention_mask": self._tensor(mask)}
        if self._typed:
            features["token_type_ids"] = self._torch.zeros_like(features["input_ids"])
        return features

    def _tensor(self, values: Any) -> Any:
        tensor = self._torch.from_numpy(values)
        if self.device == "cpu":
            return tensor
        return tensor.pin_memory().to(self._target, non_blocking=True)

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """Lack of memory as the one error that callers know."""
        try:
            yield
        except RuntimeError as error:
            # The type of CUDA's allocator is a RuntimeError too.
            if not any(sign in str(error) for sign in _OUT_OF_MEMORY):
                raise
            # The frames that the error holds keep the tensors of the pass: a smaller one would find no memory either.
            traceback.clear_frames(error.__traceback__)
            if self.device == "cuda":
                self._torch.cuda.empty_cache()
            raise DeviceMemoryError(str(error)) from None


def _padding_position(model: Any) -> int | None:
    """The position of padding where a model counts from behind it, as the RoBERTa family does; it is the id of the
    padding token as well."""
    embeddings: Any = getattr(model, "embeddings", None)
    if hasattr(embeddings, "create_position_ids_from_input_ids"):
        return int(embeddings.padding_idx)
    return None
