"""How fast is the embedding engine, beside sentence-transformers, onnxruntime and fastembed?

    python -m benchmarks.embedding [--texts 400] [--rounds 3] [--arms …]
    python -m benchmarks.embedding --device cuda --shape bge-base --tokens 512 --texts 20000
    python -m benchmarks.embedding --quick

Every arm is a process of its own, pinned to one core where the device is a CPU; they take turns, the baseline
(`SentenceTransformer.encode` as it comes) first and last in each round. Tokens are those of the texts, cut at the
model's length, without padding; on a CPU they are given per second of processor time, which a busy machine does not
distort, on a GPU per second of wall time. The texts are docstrings of 5 to 300 tokens, a quarter of each length, or
with `--tokens` all of one length. Vectors are compared with the baseline's.

`--shape` is all-MiniLM-L6-v2 with its weights by default; other shapes have random weights, which are right for speed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import texts as corpus
from benchmarks.embedding_arm import ARMS, BASELINE, SHAPES, model_folder, tokenizer_of
from benchmarks.harness import save, show
from benchmarks.peers.installs import UnavailableError, binaries
from sophia.embedding.agreement import Agreement

PEERS = ("onnxruntime", "fastembed")
ON_CUDA = (BASELINE, "sentence-transformers bf16", "exact torch", "fast torch")
ON_CPU = (BASELINE, "exact torch", "exact openvino", "fast torch", "fast openvino", "int8 openvino", *PEERS)
PROJECT = Path(__file__).parents[1]


def export_onnx(model: Path, folder: Path, length: int) -> None:
    """Write the model's transformer as `model.onnx` beside its tokenizer, for the peers."""
    site = next((binaries("fastembed").parent / "lib").glob("python*/site-packages"))
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.onnx_export", str(model), str(folder / "model.onnx"), str(site)],
        cwd=PROJECT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": length}))


class Arm:
    """A process that embeds the same texts whenever it is told to."""

    def __init__(self, name: str, folder: Path, job: Path, core: int | None) -> None:
        self.name = name
        python, module = Path(sys.executable), "benchmarks.embedding_arm"
        if name in PEERS:
            python, module = binaries("fastembed") / "python", "benchmarks.peers.fastembed_arm"
        environment = os.environ | {"OMP_NUM_THREADS": "1"} if core is not None else dict(os.environ)
        self._log = (folder / f"{name}.log").open("w+")
        self._process = subprocess.Popen(
            [python, "-m", module, name, str(job)],
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # An arm's threads are bound by where it begins.
            preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
        )
        self.runs: list[dict[str, Any]] = []
        self.about = self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Stop the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            lines = self._log.read().strip().splitlines()
            raise UnavailableError(lines[-1] if lines else "the process ended without a word")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def started(names: list[str], folder: Path, job: Path, core: int | None) -> Iterator[tuple[list[Arm], dict[str, str]]]:
    """The arms that can run here, and why the others cannot."""
    arms: list[Arm] = []
    left_out: dict[str, str] = {}
    try:
        for name in names:
            try:
                arms.append(Arm(name, folder, job, core))
                print(f"{name}: {arms[-1].about['backend']}", flush=True)
            except UnavailableError as error:
                left_out[name] = str(error)
                print(f"{name}: left out, {error}", flush=True)
        yield arms, left_out
    finally:
        for arm in arms:
            arm.end()


def measure(arms: list[Arm], rounds: int) -> None:
    """Let the arms take turns, the first of them also at the end of each round."""
    for number in range(rounds):
        for arm in [*arms, arms[0]]:
            arm.runs.append(arm.ask("run"))
        print(f"round {number + 1} of {rounds}", flush=True)


def figures_of(arms: list[Arm], tokens: int, clock: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Median rate, its ratio to the baseline, agreement and cost of one short text, by arm."""
    found: dict[str, dict[str, Any]] = {}
    oracle = None
    for arm in arms:
        path = folder / "vectors.npy"
        arm.ask(f"vectors {path}")
        vectors = np.load(path)
        oracle = vectors if oracle is None else oracle
        agreement = Agreement.of(vectors, oracle)
        rate = tokens / statistics.median(run[clock] for run in arm.runs)
        found[arm.name] = {
            "backend": arm.about["backend"],
            "tokens_per_s": rate,
            "ratio": rate / found[arms[0].name]["tokens_per_s"] if found else 1.0,
            "all_tokens_per_s": [tokens / run[clock] for run in arm.runs],
            "short_text_ms": arm.ask("short")["ms"],
            "rss_mb": arm.ask("memory")["mb"],
            "load_s": arm.about["load_s"],
            "largest_difference": agreement.difference,
            "smallest_cosine": agreement.cosine,
            "same_nearest": agreement.same_nearest,
        }
        for name in ("padding_share", "budget", "roofline_share"):
            if name in arm.runs[-1]:
                found[arm.name][name] = arm.runs[-1][name]
    return found


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, help="number of texts; 400, or 40 with --quick")
    parser.add_argument("--tokens", type=int, help="length of every text; a mix of 5 to 300 if unset")
    parser.add_argument("--rounds", type=int, help="turns of each arm; 3, or 1 with --quick")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="minilm")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *PEERS])
    parser.add_argument("--quick", action="store_true", help="a few texts; nothing is written")
    arguments = parser.parse_args()
    names = arguments.arms or list(ON_CUDA if arguments.device == "cuda" else ON_CPU)
    names = [BASELINE, *(name for name in names if name != BASELINE)]
    number = arguments.texts or (40 if arguments.quick else 400)
    on_cpu = arguments.device == "cpu"
    with tempfile.TemporaryDirectory(prefix="embedding-") as temporary:
        folder = Path(temporary)
        model = model_folder(arguments.shape, folder)
        tokenizer = tokenizer_of(model)
        length = SHAPES[arguments.shape].length
        chosen = (
            corpus.of_length(tokenizer, arguments.tokens, number)
            if arguments.tokens
            else corpus.mixed(tokenizer, number)
        )
        tokens = corpus.tokens_of(tokenizer, chosen, length)
        job = folder / "job.json"
        job.write_text(
            json.dumps(
                {
                    "model": str(model),
                    "shape": arguments.shape,
                    "length": length,
                    "dimension": SHAPES[arguments.shape].width,
                    "device": arguments.device,
                    "home": str(folder / "home"),
                    "onnx": str(folder / "onnx"),
                    "texts": chosen,
                }
            )
        )
        if set(names) & set(PEERS):
            export_onnx(model, folder / "onnx", length)
        core = sorted(os.sched_getaffinity(0))[0] if on_cpu else None
        with started(names, folder, job, core) as (arms, left_out):
            measure(arms, arguments.rounds or (1 if arguments.quick else 3))
            found = figures_of(arms, tokens, "cpu_s" if on_cpu else "wall_s", folder)
    unit = "tokens per CPU second" if on_cpu else "tokens/s"
    show(
        f"{len(chosen)} texts, {tokens} tokens, {arguments.shape} on {arguments.device}",
        ["arm", unit, "ratio", "short, ms", "cosine", "nearest", "padding", "MB"],
        [
            [
                name,
                f"{row['tokens_per_s']:,.0f}",
                f"{row['ratio']:.2f}",
                row["short_text_ms"],
                f"{row['smallest_cosine']:.6f}",
                f"{row['same_nearest']:.1%}",
                f"{row['padding_share']:.1%}" if "padding_share" in row else "",
                f"{row['rss_mb']:.0f}",
            ]
            for name, row in found.items()
        ],
    )
    name = "embedding" if on_cpu else f"embedding_{arguments.device}_{arguments.shape}_{arguments.tokens or 'mixed'}"
    save(name, {"texts": len(chosen), "tokens": tokens, "arms": found, "left_out": left_out}, quick=arguments.quick)


if __name__ == "__main__":
    main()
