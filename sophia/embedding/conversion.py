"""A model's transformer as an OpenVINO model: converted once, kept under `SOPHIA_HOME/models`, read from there.

What is kept is OpenVINO's own format, which holds a graph and numbers and no code. A folder is written under another
name and renamed when it is whole, and its sums are compared when it is read: two processes at once, a kill in between,
a full disk and a damaged file cost another conversion and nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sophia.embedding.base import Ids
from sophia.errors import ConfigurationError

logger = logging.getLogger("sophia.embedding")
Number = Literal["float32", "int8"]
# To be counted up when the code below makes another model of the same files.
REVISION = 1
MODEL, WEIGHTS, SUMS = "model.xml", "model.bin", "sums.json"
INSTALL = "pip install '.[openvino]'"
# What a killed process left is removed when it is older, in seconds: no conversion takes that long.
ABANDONED = 3_600.0
# A kept model that no process has read for so long is removed when another one is kept, in seconds.
UNUSED = 60 * 86_400.0
# Token embeddings of the converted model and of torch differ by less than this share of the largest value.
ROUNDING = 1e-4
# The converted model is compared on texts of these lengths: beyond the windows that models attend within.
COMPARED = (3, 70, 400)
_UNFINISHED = ".unfinished-"


def installed(*, quantizer: bool = False) -> bool:
    """Whether OpenVINO can be imported, and what makes int8 models."""
    return all(importlib.util.find_spec(name) is not None for name in ("openvino", *(["nncf"] if quantizer else [])))


def import_openvino() -> Any:
    """OpenVINO, which without this would report its use to its makers over the network."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def openvino_model(
    loaded: Any, number: Number, fingerprint: str, models: Path, encode: Callable[[Sequence[str]], list[Ids]]
) -> Any:
    """The transformer of a model as an `openvino.Model` of token ids and mask, from disk where it is kept already.

    Args:
        loaded: a `SentenceTransformer` in float32 on the CPU. The attention of its model is set anew.
        fingerprint: of the model, which decides where it is kept.
        models: folder of kept models; it need not exist.
        encode: texts to token ids, for the quantiser.

    Returns:
        An `openvino.Model`: `ids` and `mask` of shape (texts, length), int32, to (texts, length, width), float32.

    Raises:
        ConfigurationError: the converted model computes something else than torch, or the quantiser is missing.
    """
    release = version("openvino")
    folder = models / f"{fingerprint}-{number}-{release}-{REVISION}"
    kept = _read(folder)
    if kept is not None:
        return kept
    started = time.perf_counter()
    model = _convert(loaded)
    if number == "int8":
        model = _quantize(model, encode)
    logger.info("converted to OpenVINO %s %s in %.1f s", release, number, time.perf_counter() - started)
    _keep(model, folder)
    # What was read holds no reference to torch's weights, and shares its memory with other processes.
    kept = _read(folder)
    return model if kept is None else kept


def _convert(loaded: Any) -> Any:
    openvino = import_openvino()
    import torch

    transformer = loaded[0]
    typed = "token_type_ids" in loaded.tokenizer.model_input_names

    class TokenEmbeddings(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, ids: Any, mask: Any) -> Any:
            features = {"input_ids": ids, "attention_mask": mask}
            if typed:
                features["token_type_ids"] = torch.zeros_like(ids)
            return self.transformer(features)["token_embeddings"]

    # Written out as products and a softmax, which OpenVINO takes together again by itself.
    transformer.model.set_attn_implementation("eager")
    # A decoder would keep the keys and values of every layer for a next token that never comes.
    transformer.model.config.use_cache = False
    module = TokenEmbeddings().eval()
    example = {name: torch.from_numpy(values) for name, values in _example((7, 5)).items()}
    with _quiet(), torch.inference_mode():
        model = openvino.convert_model(module, example_input=example)
    model.reshape({name: openvino.PartialShape([-1, -1]) for name in example})
    _compare(module, model, min(int(loaded.max_seq_length), max(COMPARED)))
    return model


def _compare(module: Any, model: Any, longest: int) -> None:
    """Hold the converted model against torch, on other lengths than the example's: what it took from the example for
    a constant shows there."""
    openvino = import_openvino()
    import torch

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    lengths = tuple(min(longest, length) for length in COMPARED)
    for batch in (lengths, lengths[-1:]):
        arrays = _example(batch)
        request.start_async(arrays, share_inputs=True)
        with torch.inference_mode():
            theirs = module(**{name: torch.from_numpy(values) for name, values in arrays.items()}).numpy()
        request.wait()
        seen = arrays["mask"].astype(bool)
        ours = request.get_output_tensor(0).data
        difference = np.abs(ours[seen] - theirs[seen]).max() / np.abs(theirs[seen]).max()
        if not difference <= ROUNDING:
            raise ConfigurationError(
                f"OpenVINO computes other token embeddings than torch, by {difference:.1e} of the largest; "
                "set SOPHIA_EMBEDDING__BACKEND=torch"
            )


def _example(lengths: Sequence[int]) -> dict[str, Any]:
    """Made-up texts of these lengths, padded to the first or longest, as inputs of a converted model."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int32)
    # Small ids, which every vocabulary has; from 5 on, since the first are often specials.
    ids = np.where(mask, 5 + np.arange(mask.size).reshape(mask.shape) % 90, 0).astype(np.int32)
    return {"ids": ids, "mask": mask}


def _quantize(model: Any, encode: Callable[[Sequence[str]], list[Ids]]) -> Any:
    if not installed(quantizer=True):
        raise ConfigurationError(f"precision int8 needs a quantiser: {INSTALL}")
    with _quiet():
        import nncf

        logging.getLogger("nncf").setLevel(logging.ERROR)
        inputs = [{"ids": ids[None], "mask": np.ones((1, len(ids)), np.int32)} for ids in encode(calibration_texts())]
        return nncf.quantize(
            model, nncf.Dataset(inputs), subset_size=len(inputs), model_type=nncf.ModelType.TRANSFORMER
        )


def calibration_texts() -> list[str]:
    """Texts by which the ranges of an int8 model are chosen: the same ones everywhere, of one to twelve sentences."""
    sentences = Path(__file__).with_name("calibration.txt").read_text(encoding="utf-8").splitlines()
    runs = (1, 2, 3, 5, 8, 12)
    return [" ".join(sentences[start : start + run]) for run in runs for start in range(0, len(sentences), run)]


def _read(folder: Path) -> Any:
    """The model in a folder, or None where it is missing or damaged."""
    try:
        if not _whole(folder):
            raise ValueError("its sums differ")
        # When it was last used. A home that others own is read all the same.
        with suppress(OSError):
            os.utime(folder)
        return import_openvino().Core().read_model(folder / MODEL)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RuntimeError) as error:
        logger.warning("the converted model %s is damaged and will be made again: %s", folder.name, error)
        return None


def _keep(model: Any, folder: Path) -> None:
    """Write a model into a folder in one step, or not at all."""
    ours: list[Path] = []
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder.parent))
        replaced = unfinished.with_name(f"{unfinished.name}-replaced")
        ours += [unfinished, replaced]
        # Numbers of half the size would not be exact.
        import_openvino().save_model(model, unfinished / MODEL, compress_to_fp16=False)
        (unfinished / SUMS).write_text(json.dumps(_sums(unfinished)))
        _put(unfinished, folder, replaced)
        _tidy(folder)
    except (OSError, ValueError, RuntimeError) as error:
        logger.warning("the converted model cannot be kept in %s: %s", folder.parent, error)
    finally:
        for each in ours:
            shutil.rmtree(each, ignore_errors=True)


def _put(unfinished: Path, folder: Path, replaced: Path) -> None:
    """Give a folder its name. One of that name stays if it is whole: another process was quicker."""
    try:
        unfinished.rename(folder)
    except OSError:
        with suppress(OSError, ValueError):
            if _whole(folder):
                return
        folder.rename(replaced)
        unfinished.rename(folder)


def _tidy(folder: Path) -> None:
    """Remove what killed processes left, this model as other versions of OpenVINO had it, and models of long ago."""
    same = "-".join(folder.name.split("-")[:2]) + "-"
    for other in folder.parent.iterdir():
        with suppress(FileNotFoundError):
            age = time.time() - other.stat().st_mtime
            abandoned = other.name.startswith(_UNFINISHED) and age > ABANDONED
            unused = (other / SUMS).exists() and age > UNUSED
            if other != folder and (abandoned or unused or other.name.startswith(same)):
                shutil.rmtree(other, ignore_errors=True)


def _whole(folder: Path) -> bool:
    """Whether the files of a folder are what was written.

    Raises:
        OSError, ValueError: one is missing or unreadable.
    """
    return bool(json.loads((folder / SUMS).read_bytes()) == _sums(folder))


def _sums(folder: Path) -> dict[str, str]:
    sums = {}
    for name in (MODEL, WEIGHTS):
        with (folder / name).open("rb") as file:
            sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what converters say of models that they do convert; where they do not, they raise. Their progress goes
    where it is in the way of no output."""
    transformers = logging.getLogger("transformers")
    level = transformers.level
    transformers.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.setLevel(level)
