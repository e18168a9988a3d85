"""How many documents a second does the intake take from Estuary, and how soon is one found?

    python -m benchmarks.intake [--requests 60] [--rounds 3]
    python -m benchmarks.intake --webhook-to-searchable [--documents 1500] [--rate 50]
    python -m benchmarks.intake --quick

`sophia serve intake` (one process) and `sophia indexer` with the hash endpoint run as anyone runs them, over PostgreSQL
with durability on. The sender, a process of its own, has made all bodies before the time starts, and posts them one
after the other over one connection as Estuary does: arrays of about 1 MiB, documents of 1 KB. The indexer drains the
inbox meanwhile; what it has left at the end of an arm, and how long it takes for that, is shown. Arms in turns:

* distinct: every document is a key of its own (`op: "c"`);
* updates: partial documents (`op: "u"`) of keys that are there, each merged into what is stored;
* plain, distinct and updates: the same bodies by a loop that reads each with `json.loads` and runs
  `INSERT … ON CONFLICT DO UPDATE` by `executemany` in one transaction, into a table with a primary key.

With `--webhook-to-searchable`: single documents at a fixed rate, embedded with the real MiniLM; from the begin of the
POST until the public view shows the text. Half of them are new keys, half updates.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import yaml

from benchmarks.harness import cpu_seconds, durability, quantiles, save, show
from benchmarks.hash_endpoint import serving
from benchmarks.installation import catalog_folder, stop_server
from sophia.catalog import default_path
from sophia.database import open_database
from sophia.local import sophia_command
from sophia.services.supervisor import Child
from sophia.settings import load_settings

NAME = "sophia/documents"
PATH = f"/estuary/{NAME}"
REQUEST_BYTES = 1024 * 1024
DOCUMENT_BYTES = 1_000
START_SECONDS = 120.0
_EPOCH = 0x1F0_0000_0000_0000
PLAIN = """
INSERT INTO public.plain (key, body) VALUES (%s, %s)
ON CONFLICT (key) DO UPDATE SET body = EXCLUDED.body
"""
Connection = psycopg.Connection[Any]


def document(key: int, number: int, op: str, title: str, size: int = DOCUMENT_BYTES) -> bytes:
    """A document of about `size` bytes; `number` is its place in time."""
    clock = _EPOCH + 10 * number
    fields = (clock & 0xFFFFFFFF, clock >> 32 & 0xFFFF, clock >> 48 & 0xFFF | 0x1000, 0x80, 0, 1 << 40)
    source = {
        "ts_ms": int(time.time() * 1000),
        "schema": "public",
        "table": "documents",
        "loc": [number] * 3,
        "txid": 7,
    }
    meta = {"op": op, "source": source, "uuid": str(uuid.UUID(fields=fields))}
    row = {"_meta": meta, "id": key, "name": f"bench {key}", "module": f"m{key % 100}", "kind": "k", "title": title}
    room = size - len(json.dumps(row)) - 20
    return json.dumps(row | {"body": (f"{number} tells of herons and mills. " * 40)[: max(0, room)]}).encode()


def bodies(requests: int, first: int, number: int, op: str) -> list[bytes]:
    """Arrays as Estuary cuts them: closed once they have 1 MiB."""
    made = []
    key = first
    for _ in range(requests):
        parts: list[bytes] = []
        size = 0
        while size < REQUEST_BYTES:
            parts.append(document(key, number, op, f"Title {number}"))
            size += len(parts[-1]) + 1
            key += 1
            number += 1
        made.append(b"[" + b",".join(parts) + b"]")
    return made


def send(address: str, raws: list[bytes]) -> dict[str, Any]:
    """Post bodies one after the other: seconds in all, and milliseconds of each."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    times = []
    documents = 0
    started = time.perf_counter()
    for raw in raws:
        begun = time.perf_counter()
        connection.request("POST", PATH, raw, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        found = json.loads(answer.read())
        assert answer.status == 200, found
        assert found["parked"] == 0, found
        documents += found["documents"]
        times.append((time.perf_counter() - begun) * 1000)
    return {"seconds": time.perf_counter() - started, "documents": documents, "milliseconds": times}


def plain(url: str, raws: list[bytes]) -> dict[str, Any]:
    """The plain loop over the same bodies."""
    times = []
    documents = 0
    with psycopg.connect(url) as connection:
        started = time.perf_counter()
        for raw in raws:
            begun = time.perf_counter()
            rows = [(json.dumps([row["id"]]), json.dumps(row)) for row in json.loads(raw)]
            connection.cursor().executemany(PLAIN, rows)
            connection.commit()
            documents += len(rows)
            times.append((time.perf_counter() - begun) * 1000)
        return {"seconds": time.perf_counter() - started, "documents": documents, "milliseconds": times}


def sender(task: str, target: str, requests: int, first: int, number: int, op: str, pipe: Any) -> None:
    """What the sender's process runs: make the bodies, wait for leave, send."""
    raws = bodies(requests, first, number, op)
    pipe.send("ready")
    pipe.recv()
    pipe.send(send(target, raws) if task == "intake" else plain(target, raws))


class Stand:
    """Database, intake and indexer of the benchmark's own."""

    def __init__(self, home: Path, catalog: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.settings = load_settings(home=home, catalog=catalog)
        self.database = open_database(self.settings)
        environment = {
            "SOPHIA_HOME": str(home),
            "SOPHIA_CATALOG": str(catalog),
            "SOPHIA_INTAKE__PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        self.children = {
            name: Child(name, sophia_command("-v", *words), home / f"{name}.log", environment)
            for name, words in (("intake", ("serve", "intake")), ("indexer", ("indexer",)))
        }
        for child in self.children.values():
            child.start()

    def close(self) -> None:
        """End all of it."""
        for child in self.children.values():
            child.signal(2)
        for child in self.children.values():
            if child.process is not None:
                try:
                    child.process.wait(30)
                finally:
                    child.signal(9)
        stop_server(self.database)

    def ready(self, connection: Connection) -> None:
        """Wait for both processes."""
        self.wait(lambda: self._answers(), "the intake")
        self.wait(
            lambda: bool(connection.execute("SELECT to_regclass('indexes.documents')").fetchone()[0]), "the index"
        )

    def wait(self, condition: Any, what: str, seconds: float = START_SECONDS, pause: float = 0.05) -> float:
        """Until the condition holds; the seconds that took."""
        started = time.monotonic()
        while not condition():
            for name, child in self.children.items():
                if child.process is not None and child.process.poll() is not None:
                    raise RuntimeError(f"{name} ended while waiting for {what}:\n{child.tail(15)}")
            if time.monotonic() - started > seconds:
                raise RuntimeError(f"{what} did not come within {seconds:.0f} s")
            time.sleep(pause)
        return time.monotonic() - started

    def _answers(self) -> bool:
        parts = urlsplit(self.address)
        try:
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def pid(self, name: str) -> int:
        """Process id of `intake` or `indexer`."""
        process = self.children[name].process
        assert process is not None
        return process.pid

    def cpu(self) -> dict[str, float]:
        """Processor seconds so far."""
        spent = {name: cpu_seconds(self.pid(name)) for name in self.children}
        assert self.database.embedded is not None
        postmaster = self.database.embedded.pid()
        family = [int(pid) for pid in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()]
        spent["postgres"] = cpu_seconds(postmaster, ended=True) + sum(map(cpu_seconds, family))
        return spent

    def peak_mb(self, name: str) -> float:
        """The most resident memory that a process has had."""
        status = Path(f"/proc/{self.pid(name)}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))

    def backlog(self, connection: Connection) -> int:
        """Documents that the indexer has not applied yet."""
        row = connection.execute(
            "SELECT count(*) FROM sophia.documents d JOIN sophia.index_versions v ON v.collection_id = d.collection_id "
            "JOIN sophia.collections c ON c.id = d.collection_id "
            "WHERE c.name = 'documents' AND NOT d.bulk AND d.position > v.position"
        ).fetchone()
        return int(row[0]) if row else 0


def estuary_catalog(folder: Path) -> Path:
    """The catalog with `documents` from Estuary in the local profile; nothing else is fed."""
    path = folder / "collections.yaml"
    found = yaml.safe_load(path.read_text())
    for collection in found["collections"]:
        if collection["name"] == "documents":
            collection |= {"source": {"local": "estuary", "cluster": "estuary"}, "key": ["id"]}
    path.write_text(yaml.safe_dump(found, sort_keys=False))
    return folder


@contextmanager
def standing(*, real_model: bool) -> Iterator[Stand]:
    """Everything fresh; removed afterwards."""
    home = Path(tempfile.mkdtemp(prefix="sophia-bench-"))
    home.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        if real_model:
            folder = shutil.copytree(default_path(), home / "catalog")
        else:
            folder = catalog_folder(home / "catalog", stack.enter_context(serving()).url)
        stand = Stand(home, estuary_catalog(folder))
        stack.callback(stand.close)
        yield stand


def arm(stand: Stand, connection: Connection, task: str, kind: str, requests: int, first: int, number: int) -> Any:
    """One arm: what the sender saw, processor time, and what the indexer had left."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    target = stand.address if task == "intake" else stand.database.url
    op = "c" if kind == "distinct" else "u"
    process = context.Process(target=sender, args=(task, target, requests, first, number, op, there))
    process.start()
    assert here.recv() == "ready"
    before = stand.cpu()
    here.send("go")
    found = here.recv()
    process.join()
    after = stand.cpu()
    count = found["documents"]
    left = stand.backlog(connection)
    drained = stand.wait(lambda: stand.backlog(connection) == 0, "the indexer", 1800) if task == "intake" else 0.0
    return {
        "arm": f"{task}, {kind}",
        "documents": count,
        "seconds": found["seconds"],
        "documents_per_second": count / found["seconds"],
        "request_ms": found["milliseconds"],
        "cpu_us_per_document": {name: (after[name] - before[name]) * 1e6 / count for name in after},
        "left_to_index": left,
        "drain_seconds": drained,
    }


def throughput(requests: int, rounds: int) -> dict[str, Any]:
    """All arms, in turns."""
    arms: list[dict[str, Any]] = []
    with standing(real_model=False) as stand, stand.database.connect("bench") as connection:
        connection.execute("CREATE TABLE public.plain (key text PRIMARY KEY, body jsonb NOT NULL)")
        stand.ready(connection)
        per_request = len(json.loads(bodies(1, 1, 1, "c")[0]))
        arm(stand, connection, "intake", "distinct", 2, 900_000_000, 1)
        number = 10 * per_request
        for turn in range(rounds):
            first = 1 + turn * requests * per_request
            for kind in ("distinct", "updates"):
                for task in ("intake", "plain") if turn % 2 else ("plain", "intake"):
                    arms.append(arm(stand, connection, task, kind, requests, first, number) | {"round": turn})
                    print(f"{arms[-1]['arm']}: {arms[-1]['documents_per_second']:,.0f} documents/s", flush=True)
                number += requests * per_request
        row = connection.execute("SELECT count(*) FROM sophia.documents WHERE NOT deleted").fetchone()
        return {
            "documents_in_the_inbox": int(row[0]) if row else 0,
            "intake_peak_mb": stand.peak_mb("intake"),
            "indexer_peak_mb": stand.peak_mb("indexer"),
            "durability": durability(connection),
            "arms": arms,
        }


def summary(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An arm's rounds together."""
    names = list(dict.fromkeys(each["arm"] for each in arms))
    lines = []
    for name in names:
        own = [each for each in arms if each["arm"] == name]
        lines.append(
            {
                "arm": name,
                "documents_per_second": sum(e["documents"] for e in own) / sum(e["seconds"] for e in own),
                "slowest_round": min(e["documents_per_second"] for e in own),
                "request_ms": quantiles([each for e in own for each in e["request_ms"]]),
                "cpu_us_per_document": {
                    process: sum(e["cpu_us_per_document"][process] for e in own) / len(own)
                    for process in own[0]["cpu_us_per_document"]
                },
                "left_to_index": max(e["left_to_index"] for e in own),
                "drain_seconds": max(e["drain_seconds"] for e in own),
            }
        )
    return lines


def show_throughput(found: dict[str, Any]) -> None:
    """Print the arms."""
    show(
        "documents of 1 KB in requests of 1 MiB",
        ["arm", "docs/s", "slowest", "p50 ms", "p99 ms", "intake µs", "postgres µs", "indexer µs", "left", "drain s"],
        [
            (
                line["arm"],
                f"{line['documents_per_second']:,.0f}",
                f"{line['slowest_round']:,.0f}",
                line["request_ms"]["p50"],
                line["request_ms"]["p99"],
                *(line["cpu_us_per_document"][name] for name in ("intake", "postgres", "indexer")),
                line["left_to_index"],
                line["drain_seconds"],
            )
            for line in found["summary"]
        ],
    )
    print(
        f"the intake's memory: {found['intake_peak_mb']:.0f} MB at most; {found['documents_in_the_inbox']:,} documents "
        f"in the inbox; {found['durability']}"
    )


class Watch(threading.Thread):
    """Notes when each text is in the public view."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(daemon=True)
        self._connection = connection
        self.wanted: dict[str, str] = {}
        self.seen: dict[str, float] = {}
        self.stop = threading.Event()

    def run(self) -> None:
        """Ask by key, every few milliseconds."""
        while not self.stop.is_set():
            wanted = dict(self.wanted)
            if wanted:
                rows = self._connection.execute(
                    "SELECT key, content FROM indexes.documents WHERE key = ANY(%s)", [list(wanted)]
                ).fetchall()
                now = time.perf_counter()
                for key, content in rows:
                    title = wanted[key]
                    if title in content:
                        self.seen[title] = now
                        if self.wanted.get(key) == title:
                            del self.wanted[key]
            time.sleep(0.002)


def webhook_to_searchable(count: int, rate: float) -> dict[str, Any]:
    """Single documents at a rate with MiniLM: milliseconds of the POST, and until the text is in the view."""
    with (
        standing(real_model=True) as stand,
        stand.database.connect("bench") as connection,
        stand.database.connect("bench-watch") as watching,
    ):
        stand.ready(connection)
        send(stand.address, [b"[" + document(key, key, "c", f"Warm {key}", 300) + b"]" for key in range(1, 33)])
        stand.wait(lambda: stand.backlog(connection) == 0, "the warm-up")
        watch = Watch(watching)
        watch.start()
        posted: list[float] = []
        begun_at: dict[str, float] = {}
        begin = time.perf_counter() + 0.5
        for number in range(count):
            key, op = (1_000 + number, "c") if number % 2 == 0 else (1 + number % 32, "u")
            title = f"Heron {number} of the mill"
            raw = b"[" + document(key, 1_000 + number, op, title, 400) + b"]"
            time.sleep(max(0.0, begin + number / rate - time.perf_counter()))
            begun_at[title] = time.perf_counter()
            watch.wanted[f"[{key}]"] = title
            posted += send(stand.address, [raw])["milliseconds"]
        stand.wait(lambda: not watch.wanted, "the last document", 60)
        watch.stop.set()
        watch.join()
        # What was updated again before it was looked for was never seen by itself.
        times = [(watch.seen[title] - at) * 1000 for title, at in begun_at.items() if title in watch.seen]
        return {
            "documents": count,
            "seen": len(times),
            "rate": rate,
            "post_ms": quantiles(posted),
            "searchable_ms": quantiles(times),
            "intake_peak_mb": stand.peak_mb("intake"),
            "durability": durability(connection),
        }


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=60, help="requests of an arm and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--webhook-to-searchable", action="store_true", help="measure this instead")
    parser.add_argument("--documents", type=int, default=1_500)
    parser.add_argument("--rate", type=float, default=50.0, help="documents a second")
    parser.add_argument("--quick", action="store_true", help="few of everything, nothing written")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores", flush=True)
    if arguments.webhook_to_searchable:
        found = webhook_to_searchable(100 if arguments.quick else arguments.documents, arguments.rate)
        show(
            f"{arguments.rate:.0f} documents/s with MiniLM, ms",
            ["", "n", "p50", "p95", "p99"],
            [
                (name, *(found[figure][at] for at in ("n", "p50", "p95", "p99")))
                for name, figure in (("POST", "post_ms"), ("POST to searchable", "searchable_ms"))
            ],
        )
        save("intake_to_searchable", found, quick=arguments.quick)
        return
    requests, rounds = (4, 1) if arguments.quick else (arguments.requests, arguments.rounds)
    found = throughput(requests, rounds)
    found["summary"] = summary(found["arms"])
    for each in found["arms"]:
        each["request_ms"] = quantiles(each["request_ms"])
    show_throughput(found)
    save("intake", found, quick=arguments.quick)


if __name__ == "__main__":
    main()
