"""A process from which workers are forked: everything is imported once, so a worker starts in milliseconds.

It reads one JSON object a line from stdin (a worker's spec) and writes one a line to stdout: `{"started": pid}` for
each spec, and `{"ended": pid, "status": …}` for each worker that is gone, the status being `os.waitstatus_to_exitcode`.
At the end of stdin it ends, and its workers with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import os
import select
import signal
import subprocess
import sys
import traceback
from collections import deque
from pathlib import Path
from typing import Any

_PARENT_DEATH_SIGNAL = 1


class Zygote:
    """The driver's side: start workers, and hear of their ends."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SOPHIA_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env=environment | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        self._pending = b""
        self._ends: deque[tuple[int, int]] = deque()

    def start(self, spec: dict[str, Any]) -> int:
        """Fork a worker. Returns its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(spec).encode() + b"\n")
        self._process.stdin.flush()
        while True:
            event = self._read(60.0)
            assert event is not None, "the zygote does not answer"
            if "started" in event:
                return int(event["started"])
            self._ends.append((event["ended"], event["status"]))

    def ended(self) -> list[tuple[int, int]]:
        """Workers that ended since the last look: (process id, exit status or minus the signal)."""
        while (event := self._read(0.0)) is not None:
            self._ends.append((event["ended"], event["status"]))
        ends = list(self._ends)
        self._ends.clear()
        return ends

    def close(self) -> None:
        """End it with all its workers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _read(self, timeout: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        while b"\n" not in self._pending:
            if not select.select([self._process.stdout], [], [], timeout)[0]:
                return None
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                raise RuntimeError("the zygote has ended")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        return event


def main() -> None:
    """The zygote's loop."""
    from tests.chaos import workers

    # What was imported stays where it is: a collection in a worker would copy its pages.
    gc.collect()
    gc.freeze()
    children: set[int] = set()
    pending = b""
    while True:
        if select.select([0], [], [], 0.02)[0]:
            data = os.read(0, 65536)
            if not data:
                break
            pending += data
            *lines, pending = pending.split(b"\n")
            for line in lines:
                pid = _fork(workers, json.loads(line))
                children.add(pid)
                _say({"started": pid})
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            children.discard(pid)
            _say({"ended": pid, "status": os.waitstatus_to_exitcode(status)})
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _fork(workers: Any, spec: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 0
    try:
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        log = os.open(spec["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        logging.basicConfig(
            level=logging.INFO, format=f"%(asctime)s {spec['role']}[{os.getpid()}] %(message)s", force=True
        )
        workers.work(workers.Spec(**spec))
    except BaseException as error:
        # The driver starts it again, as a supervisor would; the last line tells why it ended.
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        status = 1
    finally:
        os._exit(status)


def _say(event: dict[str, Any]) -> None:
    os.write(1, json.dumps(event).encode() + b"\n")


if __name__ == "__main__":
    main()
