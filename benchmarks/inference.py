"""How fast does the inference service answer, alone and beside bulk work?

    python -m benchmarks.inference [--seconds 30] [--precision exact] [--backend auto]
    python -m benchmarks.inference --quick

The service runs as its users run it (`sophia serve inference`), with MiniLM on two cores, which the load generator
shares: autocannon, from npm, at a constant rate with corrected latencies (a request that had to wait to be sent counts
from when it should have been). Every request holds another short text, so no two are the same work.

* `embed`: `POST /embed` at 50 requests a second, two at a time;
* `in bursts`: the same number, sixteen at the same moment;
* `beside bulk`: the same while a client embeds batches of long texts without pause;
* `highest rate`: the highest rate of 75, 100, 125, … that it keeps up with at a p99 below 50 ms;
* `health`: `GET /health` at 1,000 requests a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks import texts as corpus
from benchmarks.embedding_arm import minilm_folder, tokenizer_of
from benchmarks.harness import save, show

GENERATOR = "autocannon@9.0.0"
TOKEN = "benchmark-token"  # noqa: S105
# The generator sends on all of its connections at the same moments: more of them make bursts.
CONNECTIONS = 2
BURST = 16
SHORT_TOKENS = (6, 16)
RATES = (75, 100, 125, 150, 175, 200, 250, 300, 400, 500)
# A connection waits for each answer, so that it carries no more than this.
RATE_OF_A_CONNECTION = 25
# Share of the rate that must have been answered.
KEPT_UP = 0.98
AIM_MS = 50
BULK_TEXTS = 200


@contextlib.contextmanager
def service(precision: str, backend: str) -> Iterator[str]:
    """A running service; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="inference-") as home:
        environment = os.environ | {
            "SOPHIA_HOME": home,
            "SOPHIA_INFERENCE__PORT": str(port),
            "SOPHIA_INFERENCE__TOKENS": TOKEN,
            "SOPHIA_INFERENCE__PRECISION": precision,
            "SOPHIA_EMBEDDING__BACKEND": backend,
        }
        log = Path(home) / "log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "sophia", "serve", "inference"], env=environment, stdout=output, stderr=output
            )
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 300
            while not _ready(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the service did not get ready:\n{log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def attack(
    url: str, rate: int, seconds: int, har: Path | None = None, connections: int = CONNECTIONS
) -> dict[str, Any]:
    """Requests at a constant rate; latencies in milliseconds.

    Args:
        har: the requests; GET of the URL if None.
    """
    command = ["npx", "--yes", GENERATOR, "--json", "--overallRate", str(rate), "--duration", str(seconds)]
    command += ["--connections", str(connections), *(["--har", str(har)] if har is not None else []), url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{GENERATOR} ends with {done.returncode}: {done.stderr.strip()[-500:]}")
    answer = json.loads(done.stdout)
    latency = answer["latency"]
    return {
        "rate": rate,
        "answered_per_s": answer["requests"]["average"],
        "p50": latency["p50"],
        "p97_5": latency["p97_5"],
        "p99": latency["p99"],
        "max": latency["max"],
        "requests": answer["2xx"],
        "refused": answer["non2xx"],
        "failed": answer["errors"] + answer["timeouts"],
    }


def requests_file(url: str, path: Path, number: int) -> None:
    """Short texts of the corpus, all different, as requests in the HTTP archive format."""
    tokenizer = tokenizer_of(minilm_folder())
    low, high = SHORT_TOKENS
    short = [text for text in corpus.docstrings() if low <= len(tokenizer.encode(text).ids) <= high][:number]
    headers = [
        {"name": "Content-Type", "value": "application/json"},
        {"name": "Authorization", "value": f"Bearer {TOKEN}"},
    ]
    entries = [
        {
            "request": {
                "method": "POST",
                "url": f"{url}/embed",
                "headers": headers,
                "postData": {"mimeType": "application/json", "text": json.dumps({"text": text})},
            }
        }
        for text in short
    ]
    path.write_text(json.dumps({"log": {"version": "1.2", "creator": {}, "entries": entries}}))


class Bulk:
    """A client that embeds batches of long texts, one behind the other, until it is stopped."""

    def __init__(self, url: str) -> None:
        self._texts = corpus.mixed(tokenizer_of(minilm_folder()), BULK_TEXTS)
        self._client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=300)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.texts = 0
        self._began = time.perf_counter()
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            # Numbered, so that no batch is the one before.
            answer = self._client.post("/embed", json={"texts": [f"{number} {text}" for text in self._texts[:64]]})
            if answer.status_code == 200:
                self.texts += len(self._texts[:64])

    def end(self) -> float:
        """Stop; texts per second."""
        self._stop.set()
        self._thread.join()
        self._client.close()
        return self.texts / (time.perf_counter() - self._began)


def highest_rate(url: str, seconds: int, har: Path) -> tuple[int, list[dict[str, Any]]]:
    """The highest of `RATES` with a p99 below the aim and every request answered; and what was measured."""
    tried = []
    best = 0
    for rate in RATES:
        found = attack(url, rate, seconds, har, max(CONNECTIONS, rate // RATE_OF_A_CONNECTION))
        tried.append(found)
        late = found["answered_per_s"] < KEPT_UP * rate
        if late or found["p99"] >= AIM_MS or found["refused"] or found["failed"]:
            break
        best = rate
    return best, tried


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, help="length of each measurement; 30, or 3 with --quick")
    parser.add_argument("--precision", choices=["exact", "fast"], default="exact")
    parser.add_argument("--backend", choices=["auto", "torch", "openvino"], default="auto")
    parser.add_argument("--quick", action="store_true", help="a few seconds; nothing is written")
    arguments = parser.parse_args()
    if shutil.which("npx") is None:
        raise SystemExit("the load generator runs on Node.js, which is not installed: apt-get install nodejs npm")
    seconds = arguments.seconds or (3 if arguments.quick else 30)
    with service(arguments.precision, arguments.backend) as url, tempfile.TemporaryDirectory() as folder:
        har = Path(folder) / "requests.har"
        requests_file(url, har, 500)
        # The first two texts of each length take 2 ms longer: OpenVINO prepares what computes it, once a thread.
        attack(url, 50, min(10, seconds), har)
        found = {"embed": attack(url, 50, seconds, har), "in bursts": attack(url, 50, seconds, har, BURST)}
        bulk = Bulk(url)
        found["beside bulk"] = attack(url, 50, seconds, har)
        found["beside bulk"]["bulk_texts_per_s"] = bulk.end()
        best, tried = highest_rate(url, max(3, seconds // 3), har)
        found["health"] = attack(f"{url}/health", 1_000, seconds)
    show(
        f"inference service, MiniLM {arguments.precision}, {arguments.backend}; milliseconds",
        ["load", "requests/s", "p50", "p97.5", "p99", "max", "refused", "failed"],
        [
            [name, *(row[field] for field in ("rate", "p50", "p97_5", "p99", "max", "refused", "failed"))]
            for name, row in found.items()
        ],
    )
    print(f"highest rate with p99 < {AIM_MS} ms: {best} requests/s")
    name = f"inference_{arguments.precision}" + ("" if arguments.backend == "auto" else f"_{arguments.backend}")
    save(name, {"loads": found, "highest_rate": best, "rates": tried}, quick=arguments.quick)


if __name__ == "__main__":
    main()
