"""The OpenVINO backend: what it computes is what the precision class promises, and what it keeps is never trusted."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from sophia.catalog import Catalog
from sophia.catalog.models import EmbeddingModel
from sophia.embedding import Embedder, conversion, load_embedder, model_fingerprint
from sophia.embedding.agreement import EXACT, FAST, Agreement
from sophia.embedding.base import Vectors
from sophia.embedding.models import model_path
from sophia.errors import ConfigurationError
from sophia.sample import docstrings
from sophia.settings import Settings, load_settings
from tests.integration import tiny_models
from tests.integration.test_architectures import TEXTS, one_by_one

if not conversion.installed(quantizer=True):
    pytest.skip(f"needs OpenVINO: {conversion.INSTALL}", allow_module_level=True)

ODD = [
    *TEXTS,
    " ".join(["token"] * 254),
    "שלום עולם، مرحبا",
    "\x07\x1b[31m\r\n\t\u200b\ufeff",
    "🦎🐍" * 40,
]


def settings_of(home: Path, backend: str = "openvino", **embedding: Any) -> Settings:
    return load_settings(device="cpu", home=home, embedding={"backend": backend, **embedding})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def model(catalog: Catalog) -> EmbeddingModel:
    return catalog.model("minilm")


@pytest.fixture(scope="module")
def minilm(model: EmbeddingModel, home: Path) -> Embedder:
    return load_embedder(model, "exact", settings_of(home, threads=2))


@pytest.fixture(scope="module")
def oracle(model: EmbeddingModel) -> Callable[[list[str]], Vectors]:
    """sentence-transformers in float32, one text at a time."""
    loaded = SentenceTransformer(model_path(model), device="cpu")
    loaded.max_seq_length = model.max_tokens

    def vectors(texts: list[str]) -> Vectors:
        each: Any = [loaded.encode([text], normalize_embeddings=True, show_progress_bar=False)[0] for text in texts]
        return np.stack(each)

    return vectors


@pytest.fixture
def tiny(tmp_path: Path) -> EmbeddingModel:
    return tiny_models.save(tmp_path / "tiny", "bert")


def folders(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "models").iterdir())


def kept(model: EmbeddingModel, home: Path) -> Path:
    """The one folder of a converted model."""
    (name,) = [name for name in folders(home) if name.startswith(model_fingerprint(model, "exact"))]
    return home / "models" / name


def test_exact_agrees_with_sentence_transformers_on_odd_texts(
    minilm: Embedder, oracle: Callable[[list[str]], Vectors]
) -> None:
    """On a CPU with bfloat16 this is what fails when the number format is left to OpenVINO."""
    assert minilm.backend.startswith("openvino ")
    assert minilm.backend.endswith(" cpu float32 padded")
    assert np.abs(minilm.embed(ODD) - oracle(ODD)).max() <= EXACT


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_vector_depends_neither_on_its_batch_nor_on_the_threads(
    minilm: Embedder, model: EmbeddingModel, home: Path, threads: int
) -> None:
    embedder = load_embedder(model, "exact", settings_of(home, threads=threads))
    single = np.concatenate([minilm.embed([text]) for text in ODD])
    for budget in (1, 96, 512, 100_000):
        embedder.pass_tokens = budget
        assert np.abs(embedder.embed(ODD) - single).max() <= EXACT
        assert np.abs(embedder.embed(ODD[::-1])[::-1] - single).max() <= EXACT


def test_fast_keeps_directions_and_neighbours(minilm: Embedder, model: EmbeddingModel, home: Path) -> None:
    embedder = load_embedder(model, "fast", settings_of(home))
    texts = [f"{each.title}\n{each.body}" for each in docstrings(300)]
    agreement = Agreement.of(embedder.embed(texts), minilm.embed(texts))
    assert agreement.cosine >= FAST
    assert agreement.same_nearest >= 0.98
    if "BF16" in conversion.import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert embedder.backend.endswith(" cpu bfloat16 padded")
        assert agreement.difference > EXACT, "that was float32"


def test_int8_says_how_far_it_agrees_and_is_the_same_again(
    tiny: EmbeddingModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="sophia.embedding")
    first = load_embedder(tiny, "int8", settings_of(tmp_path / "one", "auto"))
    assert first.backend.endswith(" cpu int8 padded")
    (said,) = [message for message in caplog.messages if "smallest cosine" in message]
    assert "int8" in said
    agreement = Agreement.of(first.embed(TEXTS), one_by_one(tiny, TEXTS))
    assert agreement.difference > EXACT
    assert agreement.cosine > 0.8
    second = load_embedder(tiny, "int8", settings_of(tmp_path / "two", "auto"))
    assert np.array_equal(first.embed(TEXTS), second.embed(TEXTS))


def test_calibration_texts_are_of_all_lengths() -> None:
    sizes = [len(text.split()) for text in conversion.calibration_texts()]
    assert min(sizes) < 8
    assert max(sizes) > 120


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_architecture_agrees_one_by_one(architecture: str, tmp_path: Path) -> None:
    pooling = "lasttoken" if architecture in ("qwen3", "llama") else "mean"
    model = tiny_models.save(tmp_path, architecture, pooling)
    embedder = load_embedder(model, "exact", settings_of(tmp_path / "home", "auto"))
    assert embedder.backend.startswith("openvino")
    assert np.abs(embedder.embed(TEXTS) - one_by_one(model, TEXTS)).max() <= EXACT


@pytest.mark.parametrize("pooling", ["cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"], ids=str)
def test_modules_behind_the_transformer(pooling: str, tmp_path: Path) -> None:
    model = tiny_models.save(tmp_path, "bert", pooling, dense=True, normalize=True)
    embedder = load_embedder(model, "exact", settings_of(tmp_path / "home"))
    assert np.abs(embedder.embed(TEXTS) - one_by_one(model, TEXTS)).max() <= EXACT


def test_what_the_conversion_takes_for_a_constant_is_noticed(
    tiny: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that looks at the length of the example, and is right for short texts only."""
    import torch
    from transformers.models.bert.modeling_bert import BertModel

    forward = BertModel.forward

    def shortened(self: Any, input_ids: Any, attention_mask: Any, **named: Any) -> Any:
        out = forward(self, input_ids, attention_mask, **named)
        if torch.jit.is_tracing() or input_ids.shape[1] < 300:
            return out
        out.last_hidden_state = out.last_hidden_state * torch.linspace(1, 2, input_ids.shape[1])[None, :, None]
        return out

    longer = tiny_models.save(tmp_path / "longer", "bert", max_tokens=300)
    monkeypatch.setattr(BertModel, "forward", shortened)
    with pytest.raises(ConfigurationError, match="other token embeddings than torch"):
        load_embedder(longer, "exact", settings_of(tmp_path / "home"))
    assert load_embedder(longer, "exact", settings_of(tmp_path / "home", "auto")).backend.startswith("torch")
    assert not (tmp_path / "home" / "models").exists(), "a wrong model was kept"
    assert load_embedder(tiny, "exact", settings_of(tmp_path / "home")).backend.startswith("openvino")


def test_converted_model_is_kept_and_read_again(
    tiny: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_embedder(tiny, "exact", settings_of(tmp_path))
    assert [path.name for path in sorted(kept(tiny, tmp_path).iterdir())] == ["model.bin", "model.xml", "sums.json"]
    monkeypatch.setattr(conversion, "_convert", lambda _: pytest.fail("converted again"))
    again = load_embedder(tiny, "exact", settings_of(tmp_path))
    assert np.array_equal(first.embed(TEXTS), again.embed(TEXTS))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "model.bin", 1_000),
        lambda folder: _flip(folder / "model.bin"),
        lambda folder: _flip(folder / "model.xml"),
        lambda folder: (folder / "model.xml").write_text("<net"),
        lambda folder: (folder / "model.bin").unlink(),
        lambda folder: (folder / "sums.json").write_bytes(b"\xff\x00"),
        lambda folder: (folder / "sums.json").unlink(),
    ],
    ids=["bin cut", "bin flipped", "xml flipped", "xml cut", "no bin", "sums", "no sums"],
)
def test_damaged_model_is_made_again(damage: Callable[[Path], Any], tiny: EmbeddingModel, tmp_path: Path) -> None:
    right = load_embedder(tiny, "exact", settings_of(tmp_path)).embed(TEXTS)
    folder = kept(tiny, tmp_path)
    sound = json.loads((folder / "sums.json").read_text())
    damage(folder)
    assert np.array_equal(load_embedder(tiny, "exact", settings_of(tmp_path)).embed(TEXTS), right)
    assert folders(tmp_path) == [folder.name]
    assert json.loads((folder / "sums.json").read_text())["model.bin"] == sound["model.bin"]
    assert conversion._whole(folder)


def test_full_disk_costs_the_next_conversion_only(
    tiny: EmbeddingModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        embedder = load_embedder(tiny, "exact", settings_of(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert embedder.backend.startswith("openvino")
    assert np.abs(embedder.embed(TEXTS) - one_by_one(tiny, TEXTS)).max() <= EXACT
    assert any("cannot be kept" in message or "damaged" in message for message in caplog.messages)
    load_embedder(tiny, "exact", settings_of(tmp_path))
    assert conversion._whole(kept(tiny, tmp_path))
    assert len(folders(tmp_path)) == 1


def test_home_that_cannot_be_written_is_no_fault(tiny: EmbeddingModel, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    assert load_embedder(tiny, "exact", settings_of(tmp_path)).backend.startswith("openvino")


PROCESS = """
import sys
from pathlib import Path
import numpy as np
from sophia.catalog.models import EmbeddingModel
from sophia.embedding import conversion, load_embedder
from sophia.settings import load_settings
model = EmbeddingModel.model_validate_json(sys.argv[1])
home, out = map(Path, sys.argv[2:4])
embedding = {"backend": "openvino", "budget_tokens": 16_384, "threads": 1}
settings = load_settings(device="cpu", home=home, embedding=embedding)
"""


def process(body: str, model: EmbeddingModel, home: Path, out: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PROCESS + body, model.model_dump_json(), str(home), str(out)]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)


def ended(started: subprocess.Popen[str]) -> int:
    _, errors = started.communicate(timeout=240)
    print(errors)
    return started.returncode


def test_two_processes_that_convert_at_once(tiny: EmbeddingModel, tmp_path: Path) -> None:
    """Both wait for the other before they give the folder its name."""
    body = """
put = conversion._put
def meet(*args):
    import time
    out.with_suffix(".ready").touch()
    while len(list(out.parent.glob("*.ready"))) < 2:
        time.sleep(0.01)
    put(*args)
conversion._put = meet
np.save(out, load_embedder(model, "exact", settings).embed(["one", "two words"]))
"""
    home = tmp_path / "home"
    both = [process(body, tiny, home, tmp_path / f"{number}.npy") for number in (1, 2)]
    assert [ended(each) for each in both] == [0, 0]
    first, second = (np.load(tmp_path / f"{number}.npy") for number in (1, 2))
    assert np.array_equal(first, second)
    assert conversion._whole(kept(tiny, home))
    assert len(folders(home)) == 1


def test_killed_while_it_keeps_a_model(tiny: EmbeddingModel, tmp_path: Path) -> None:
    body = """
import os
conversion._put = lambda *_: os.kill(os.getpid(), 9)
load_embedder(model, "exact", settings)
"""
    home = tmp_path / "home"
    assert ended(process(body, tiny, home, tmp_path / "out")) == -signal.SIGKILL
    (left,) = folders(home)
    load_embedder(tiny, "exact", settings_of(home))
    assert set(folders(home)) == {left, kept(tiny, home).name}, "that might be another's, who still writes it"
    old = time.time() - 2 * conversion.ABANDONED
    os.utime(home / "models" / left, (old, old))
    shutil.rmtree(kept(tiny, home))
    load_embedder(tiny, "exact", settings_of(home))
    assert folders(home) == [kept(tiny, home).name]


def test_model_of_another_release_is_removed(
    tiny: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_embedder(tiny, "exact", settings_of(tmp_path))
    load_embedder(tiny, "fast", settings_of(tmp_path))
    old = folders(tmp_path)
    monkeypatch.setattr(conversion, "REVISION", conversion.REVISION + 1)
    load_embedder(tiny, "exact", settings_of(tmp_path))
    assert kept(tiny, tmp_path).name not in old
    assert len(folders(tmp_path)) == 2, "the other precision class is another model"


def test_model_that_nobody_has_read_for_long_is_removed(tiny: EmbeddingModel, tmp_path: Path) -> None:
    others = {name: tmp_path / "models" / name for name in ("unused", "new", "not ours")}
    old = time.time() - 2 * conversion.UNUSED
    for name, other in others.items():
        other.mkdir(parents=True)
        (other / ("file" if name == "not ours" else conversion.SUMS)).touch()
        if name != "new":
            os.utime(other, (old, old))
    load_embedder(tiny, "exact", settings_of(tmp_path))
    assert not others["unused"].exists()
    folder = kept(tiny, tmp_path)
    assert set(folders(tmp_path)) == {"new", "not ours", folder.name}
    os.utime(folder, (old, old))
    load_embedder(tiny, "exact", settings_of(tmp_path))
    load_embedder(tiny, "int8", settings_of(tmp_path))
    assert folder.exists(), "one that a process has just read"


def test_lack_of_memory_is_never_answered_with_other_vectors(
    model: EmbeddingModel, home: Path, minilm: Embedder, tmp_path: Path
) -> None:
    """Passes that do not fit are split, until they do. After one that failed the next is right."""
    minilm.embed(["one"])
    body = """
import resource
embedder = load_embedder(model, "exact", settings)
texts = [f"{n} " + "some words of a long text " * 50 for n in range(24)]
embedder.pass_tokens = 600
right = embedder.embed(texts)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 25_000_000,) * 2)
embedder.pass_tokens = None
vectors = embedder.embed(texts)
assert embedder.figures.out_of_memory > 0, "it did fit"
assert np.abs(vectors - right).max() <= 1e-5, np.abs(vectors - right).max(axis=1)
again = embedder.embed(["short", *texts[:3]])
assert np.abs(again[1:] - right[:3]).max() <= 1e-5
np.save(out, vectors)
"""
    assert ended(process(body, model, home, tmp_path / "out.npy")) == 0


def test_a_text_of_any_length_finds_everything_made_after_the_warm_up(tmp_path: Path) -> None:
    """Making what computes a long text with all threads takes a quarter of a second, in which everybody waits."""
    longer = tiny_models.save(tmp_path / "longer", "bert", max_tokens=300)
    embedder: Any = load_embedder(longer, "exact", settings_of(tmp_path, threads=2, budget_tokens=64))
    embedder.engine.warm_up()
    made = {streams: list(requests) for streams, requests in embedder._backend._requests.items()}
    embedder.embed(TEXTS)
    embedder.embed(["one two " * 100])
    assert embedder._backend._requests == made
    assert set(made) == {1, 2}, "one pass by each thread, and one by all together"


def test_used_by_one_thread_after_the_other(minilm: Embedder) -> None:
    right = minilm.embed(ODD)
    found: list[Vectors] = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: found.append(minilm.embed(ODD)))
        thread.start()
        thread.join()
    assert all(np.abs(each - right).max() <= EXACT for each in found)


def _without(*missing: str) -> Callable[[str], Any]:
    real = importlib.util.find_spec
    return lambda name: None if name in missing else real(name)


def test_without_openvino(tiny: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", _without("openvino"))
    assert load_embedder(tiny, "exact", settings_of(tmp_path, "auto")).backend.startswith("torch")
    for precision, backend in (("exact", "openvino"), ("int8", "auto"), ("int8", "openvino")):
        with pytest.raises(ConfigurationError, match=r"pip install '\.\[openvino\]'"):
            load_embedder(tiny, precision, settings_of(tmp_path, backend))  # type: ignore[arg-type]


def test_without_the_quantizer(tiny: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", _without("nncf"))
    assert load_embedder(tiny, "exact", settings_of(tmp_path, "auto")).backend.startswith("openvino")
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[openvino\]'"):
        load_embedder(tiny, "int8", settings_of(tmp_path, "auto"))


def test_torch_when_asked_for(tiny: EmbeddingModel, tmp_path: Path) -> None:
    assert load_embedder(tiny, "exact", settings_of(tmp_path, "torch")).backend.startswith("torch")
    with pytest.raises(ConfigurationError, match="SOPHIA_EMBEDDING__BACKEND=auto"):
        load_embedder(tiny, "int8", settings_of(tmp_path, "torch"))


def test_openvino_alone_has_no_fallback(tiny: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> Any:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(conversion, "_convert", refuse)
    assert load_embedder(tiny, "exact", settings_of(tmp_path, "auto")).backend.startswith("torch")
    with pytest.raises(ConfigurationError, match="no such operation"):
        load_embedder(tiny, "exact", settings_of(tmp_path, "openvino"))


def test_nothing_is_reported_to_anybody(tiny: EmbeddingModel, tmp_path: Path) -> None:
    """The package that does so would be imported by OpenVINO and by its quantizer."""
    body = """
load_embedder(model, "int8", settings)
assert {"openvino", "nncf"} <= sys.modules.keys()
assert sys.modules["openvino_telemetry"] is None
"""
    assert ended(process(body, tiny, tmp_path / "home", tmp_path / "out")) == 0
