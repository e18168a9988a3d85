"""The protocol between `benchmarks.embedding` and its arms. Imports nothing that a peer's environment may lack.

An arm is started with its name and a job file, and says when it is loaded. Then it answers commands on standard
input, each by a line of JSON: `run` (all texts once), `short` (a text of ten tokens, many times), `vectors PATH`,
`memory`.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHORT = "the heron waits by the river until noon"
SHORT_RUNS = 40


def serve(make: Callable[[dict[str, Any]], Any]) -> None:
    """Load, then answer commands until standard input ends."""
    job = json.loads(Path(sys.argv[2]).read_text())
    # Where answers go; what libraries print goes to the log instead.
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    clock = time.process_time if job["device"] == "cpu" else time.perf_counter
    began = time.perf_counter()
    arm = make(job)
    answer(backend=arm.backend, load_s=time.perf_counter() - began)
    texts: list[str] = job["texts"]
    arm.embed(texts[:8])
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "run":
            wall, cpu = time.perf_counter(), time.process_time()
            arm.embed(texts)
            answer(wall_s=time.perf_counter() - wall, cpu_s=time.process_time() - cpu, **arm.figures())
        elif command == "short":
            times = []
            for _ in range(SHORT_RUNS):
                began = clock()
                arm.embed([SHORT])
                times.append((clock() - began) * 1000)
            answer(ms=statistics.median(times))
        elif command == "vectors":
            np.save(argument, np.asarray(arm.embed(texts), dtype=np.float32))
            answer(saved=argument)
        elif command == "memory":
            answer(mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
