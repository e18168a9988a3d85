"""Run the comparison; see the package's docstring."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import benchmarks.peers
from benchmarks.harness import durability, quantiles, save
from benchmarks.peers import measures
from benchmarks.peers.arm import Arm
from benchmarks.peers.cocoindex_arm import CocoindexArm
from benchmarks.peers.installs import UnavailableError, binaries
from benchmarks.peers.pgai_arm import PgaiArm
from benchmarks.peers.report import report
from benchmarks.peers.sophia_arm import SophiaArm
from benchmarks.peers.workload import Source, texts

ARMS: dict[str, type[Arm]] = {arm.name: arm for arm in (SophiaArm, CocoindexArm, PgaiArm)}
ROUNDS = 2


class Comparison:
    """The arms of a run, their sources and what was found about them."""

    def __init__(self, names: list[str], rows: int, folder: Path, core: int) -> None:
        self.rows = rows
        self.figures: dict[str, dict[str, Any]] = {name: {} for name in names}
        self.durability: dict[str, dict[str, str]] = {}
        self._arms: dict[str, tuple[Arm, Source]] = {}
        bodies = texts(rows)
        for name in names:
            try:
                if name != SophiaArm.name:
                    binaries(name)
                arm = ARMS[name](folder / name, core)
                self._arms[name] = (arm, arm.fill(bodies))
                self.durability[name] = durability(arm.reader)
            except UnavailableError as error:
                self.figures[name]["left out"] = str(error)
        self._turn = 0

    def measure(self, name: str, function: Callable[[Arm, Source], Any], *, running: bool = True) -> None:
        """Run a measure on each arm in turn; `running`: its workers are there, and are awake before it begins."""
        order = list(self._arms)
        self._turn += 1
        for arm_name in order[self._turn % len(order) :] + order[: self._turn % len(order)]:
            arm, source = self._arms[arm_name]
            began = time.perf_counter()
            try:
                if running:
                    arm.resume()
                    measures.ready(arm, source)
                figures = function(arm, source)
            except TimeoutError as error:
                figures = {"state": str(error)}
            finally:
                arm.pause()
            self.figures[arm_name].setdefault(name, []).append(figures)
            print(f"{name:12} {arm_name:10} {time.perf_counter() - began:5.1f} s  {_short(figures)}", flush=True)

    def release(self) -> None:
        """Stop all arms."""
        for arm, _ in self._arms.values():
            arm.release()


def _short(figures: dict[str, Any]) -> str:
    def shown(value: Any) -> Any:
        if isinstance(value, list):
            return round(quantiles(value)["p50"], 1)
        return round(value, 2) if isinstance(value, float) else value

    return ", ".join(f"{name} {shown(value)}" for name, value in figures.items())


@contextlib.contextmanager
def comparison(names: list[str], rows: int) -> Iterator[Comparison]:
    """All arms on the first core, this process and the embedders on the last."""
    cores = sorted(os.sched_getaffinity(0))
    # A paused worker does not notice that its parent ended, so this must end in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    os.sched_setaffinity(0, {cores[-1]})
    folder = Path(tempfile.mkdtemp(prefix="peers-"))
    made: Comparison | None = None
    try:
        made = Comparison(names, rows, folder, cores[0])
        yield made
    finally:
        if made is not None:
            made.release()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        description=benchmarks.peers.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, help="rows of the source table; 1500, or 200 with --quick")
    parser.add_argument("--changes", type=int, help="rows to insert, update and delete each; 20, or 4")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--install", action="store_true", help="only install the peers")
    parser.add_argument("--quick", action="store_true", help="a few rows; nothing is written")
    arguments = parser.parse_args()
    if arguments.install:
        for name in arguments.arms:
            if name != SophiaArm.name:
                try:
                    print(binaries(name))
                except UnavailableError as error:
                    print(f"{name}: {error}")
        return
    rows = arguments.rows or (200 if arguments.quick else 1_500)
    changes = arguments.changes or (4 if arguments.quick else 20)
    share = max(2, rows // 100)
    with comparison(arguments.arms, rows) as run:
        run.measure("initial", lambda arm, source: measures.initial(arm, source, rows), running=False)
        for _ in range(ROUNDS):
            run.measure("change set", lambda arm, source: measures.change_set(arm, source, share))
            run.measure("latency", lambda arm, source: measures.latency(arm, source, changes // ROUNDS))
        run.measure("hot row", measures.hot_row)
        run.measure("touched", measures.touched)
        run.measure("change set", lambda arm, source: measures.change_set(arm, source, share))
        for _ in range(ROUNDS):
            run.measure("kill -9", lambda arm, source: measures.killed(arm, source, share))
        run.measure("cut", lambda arm, source: measures.cut(arm, source, share))
    figures = report(run.figures, rows, share, run.durability)
    save("peers", figures, quick=arguments.quick)


if __name__ == "__main__":
    main()
