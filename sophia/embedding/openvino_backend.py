"""Forward passes by OpenVINO on a CPU: the transformer only, padded; pooling and what follows stay with torch.

=========  ======================================================================================
precision  how
=========  ======================================================================================
exact      float32
fast       bfloat16; float32 where the CPU has no bfloat16 arithmetic
int8       weights and activations of linear layers in int8, the rest float32
=========  ======================================================================================

The number format is always named: left alone, OpenVINO computes in bfloat16 wherever the CPU has it.

Each thread is a stream of its own. The texts of a pass are shared out among them, so that none waits for another at
every layer: on a machine that others use too such waiting costs more than half. Only a pass of few and long texts is
computed by all threads together.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from sophia.catalog.models import Precision
from sophia.embedding.base import DeviceMemoryError, Ids, Vectors
from sophia.embedding.conversion import Number, import_openvino, openvino_model
from sophia.embedding.loading import plain_tokenizer
from sophia.embedding.tokens import TextTokenizer
from sophia.settings import Settings

# First and largest token budgets of the search, for each thread.
BUDGETS = (256, 1_024)
# Fewer tokens than this are not worth a thread of their own.
PART_TOKENS = 64
# A pass that leaves half of the threads idle is computed by all together when it has at least so many tokens.
TOGETHER_TOKENS = 128
# How OpenVINO says that memory is used up; it has no type for that.
_OUT_OF_MEMORY = (
    "Failed to allocate",
    "can't alloc",
    "bad_alloc",
    "out of memory",
    "out_of_memory",
    "not enough memory",
)


class OpenVinoBackend:
    """Implements `Backend`.

    Args:
        loaded: a `SentenceTransformer` in float32 on the CPU. Its transformer is not needed any more from now on.
        fingerprint: of the model, by which the converted one is kept.

    Raises:
        ConfigurationError: the converted model computes something else than torch, or the quantiser is missing.
    """

    def __init__(self, loaded: Any, precision: Precision, fingerprint: str, settings: Settings) -> None:
        import torch

        self.device: Literal["cpu", "cuda"] = "cpu"
        self.padded = True
        openvino = import_openvino()
        self._torch: Any = torch
        self._core = openvino.Core()
        halves = precision == "fast" and "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._hint = "bf16" if halves else "f32"
        number = "int8" if precision == "int8" else "bfloat16" if halves else "float32"
        self.name = f"openvino {version('openvino')} cpu {number} padded"

        def encode(texts: Sequence[str]) -> list[Ids]:
            return TextTokenizer(plain_tokenizer(loaded), loaded.max_seq_length).encode(texts)

        form: Number = "int8" if precision == "int8" else "float32"
        self._model = openvino_model(loaded, form, fingerprint, settings.home / "models", encode)
        self._rest = list(loaded)[1:]
        self._pad = loaded.tokenizer.pad_token_id or 0
        self._threads = settings.embedding.threads or torch.get_num_threads()
        self.first_budget, self.largest_budget = (each * self._threads for each in BUDGETS)
        self._requests: dict[int, list[Any]] = {}
        self._requests_of(self._threads)

    def start(self, batch: Sequence[Ids]) -> Callable[[], Vectors]:
        """See `Backend.start`."""
        order = sorted(range(len(batch)), key=lambda i: -len(batch[i]))
        parts = self._parts([batch[i] for i in order])
        tokens = sum(map(len, batch))
        together = 2 * len(parts) <= self._threads and tokens >= TOGETHER_TOKENS
        try:
            found = self._compute(parts, 1 if together else self._threads)
        except (RuntimeError, MemoryError) as error:
            # After an error the graph holds shapes of a pass that was not finished: it would fail, or mix them up.
            self._requests.clear()
            # The frames that the error holds keep the graph, and with it the memory that the next one needs.
            traceback.clear_frames(error.__traceback__)
            if isinstance(error, MemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY):
                raise DeviceMemoryError(f"{self.name}: no memory for {tokens} tokens") from None
            raise
        vectors = np.empty_like(found)
        vectors[order] = found
        return lambda: vectors

    def _compute(self, parts: Sequence[Sequence[Ids]], streams: int) -> Vectors:
        """Vectors of parts, one behind the other. As many parts as there are streams are computed at a time."""
        requests = self._requests_of(streams)
        inputs = [self._padded(part) for part in parts]
        found: list[Vectors] = []
        faults: list[RuntimeError] = []
        for started in range(len(parts) + streams):
            landing = started - streams
            if 0 <= landing < len(parts):
                # All of them, after a fault too: a request that still computes reads its inputs.
                try:
                    requests[landing % streams].wait()
                    found.append(self._pooled(requests[landing % streams].get_output_tensor(0).data, *inputs[landing]))
                except RuntimeError as error:
                    faults.append(error)
            if started < len(parts) and not faults:
                ids, mask = inputs[started]
                # Not `infer`, which keeps errors to itself and leaves the vectors of the pass before.
                requests[started % streams].start_async({"ids": ids, "mask": mask}, share_inputs=True)
        if faults:
            raise faults[0]
        return np.concatenate(found)

    def _requests_of(self, streams: int) -> list[Any]:
        """A request for each stream, of the model compiled for so many streams."""
        if streams not in self._requests:
            compiled = self._core.compile_model(
                self._model,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": self._hint,
                    "INFERENCE_NUM_THREADS": self._threads,
                    "NUM_STREAMS": streams,
                    # Two processes would be pinned to the same core.
                    "ENABLE_CPU_PINNING": False,
                },
            )
            self._requests[streams] = [compiled.create_infer_request() for _ in range(streams)]
        return self._requests[streams]

    def _parts(self, batch: Sequence[Ids]) -> list[Sequence[Ids]]:
        """A batch, longest first, in runs: of about as many tokens for each thread that is worth it, and cut where that
        saves padding that is worth a part."""
        lengths = [len(ids) for ids in batch]
        ends = np.cumsum(lengths)
        number = int(min(self._threads, len(batch), max(1, ends[-1] // PART_TOKENS)))
        bounds = {
            0,
            len(batch),
            *(int(cut) + 1 for cut in np.searchsorted(ends, ends[-1] * np.arange(1, number) / number)),
        }
        longest = lengths[0]
        for place, length in enumerate(lengths):
            if place in bounds or (longest - length) * (len(batch) - place) >= PART_TOKENS:
                bounds.add(place)
                longest = length
        return [batch[start:end] for start, end in pairwise(sorted(bounds))]

    def _padded(self, batch: Sequence[Ids]) -> tuple[Any, Any]:
        lengths = np.array([len(ids) for ids in batch])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int32)
        ids = np.full(mask.shape, self._pad, dtype=np.int32)
        ids[mask.astype(bool)] = np.concatenate(batch)
        return ids, mask

    def _pooled(self, tokens: Any, ids: Any, mask: Any) -> Vectors:
        """Vectors from the transformer's output, shape (texts, length, width)."""
        torch = self._torch
        if tokens.shape[:2] != ids.shape:
            raise RuntimeError(f"{self.name}: {ids.shape} tokens were asked for, {tokens.shape[:2]} computed")
        with torch.inference_mode():
            features = {
                "input_ids": torch.from_numpy(ids),
                "attention_mask": torch.from_numpy(mask),
                "token_embeddings": torch.from_numpy(tokens),
            }
            for module in self._rest:
                features = module(features)
            unit: Vectors = torch.nn.functional.normalize(features["sentence_embedding"].float(), dim=1).numpy()
        return unit
