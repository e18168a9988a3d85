"""`python -m tests.chaos`: rounds until enough was killed, changed and hit; `make chaos` calls it.

It resumes an interrupted run; the table is written when the run is complete.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

from tests.chaos.driver import Driver, Outcome
from tests.chaos.points import POINTS
from tests.chaos.report import Totals

ROOT = Path(__file__).parents[2]
STATE = ROOT / ".sophia" / "chaos"
RESULTS = ROOT / "benchmarks" / "results"
# Rounds on one server; the next one begins with first snapshots again.
ROUNDS_A_SERVER = 25


def main() -> int:
    """Run; returns 1 when an index differed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", default="sophia", help="decides statements and faults")
    parser.add_argument("--kills", type=int, default=1_000, help="least number of processes to kill")
    parser.add_argument("--changes", type=int, default=1_000_000, help="least number of rows to change")
    parser.add_argument("--hits", type=int, default=20, help="least number of kills at each failpoint")
    parser.add_argument("--steps", type=int, default=16, help="faults a round, and as many aimed kills")
    parser.add_argument("--round", type=int, help="only this round, with all that it did; nothing is recorded")
    parser.add_argument("--fresh", action="store_true", help="start over")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a difference")
    wanted = parser.parse_args()
    # Ends the server and removes its folder, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if wanted.round is not None:
        with Driver(wanted.seed, wanted.round) as driver:
            outcome = driver.round(wanted.round, wanted.steps)
        print("\n".join(outcome.log))
        return 1 if outcome.losses else 0
    state = STATE / f"{wanted.seed}.json"
    totals = Totals(wanted.seed)
    if state.exists() and not wanted.fresh:
        totals = Totals.read(state)
        print(f"resuming: {totals.line()}")

    def enough() -> bool:
        return (
            totals.killed >= wanted.kills
            and totals.changes >= wanted.changes
            and all(totals.hits[name] >= wanted.hits for name in POINTS)
        )

    while not enough():
        totals.servers += 1
        with Driver(wanted.seed, totals.next, Counter(totals.hits)) as driver:
            with driver.server.connect() as connection:
                totals.describe(connection)
            for _ in range(ROUNDS_A_SERVER):
                outcome = driver.round(totals.next, wanted.steps)
                totals.add(outcome)
                totals.save(state)
                print(f"{outcome.seconds:5.1f} s  {totals.line()}", flush=True)
                if outcome.losses:
                    _complain(wanted.seed, outcome, driver)
                    break
                if enough():
                    break
        if outcome.losses and not wanted.keep_going:
            return 1
    command = f"python -m tests.chaos --kills {wanted.kills} --changes {wanted.changes} --hits {wanted.hits}"
    table = totals.markdown(command)
    totals.save(RESULTS / "chaos.json")
    (RESULTS / "chaos.md").write_text(table)
    print(table)
    state.unlink()
    return 1 if totals.losses else 0


def _complain(seed: str, outcome: Outcome, driver: Driver) -> None:
    """Say what differs, and keep it with the workers' log."""
    lines = [f"round {outcome.number} of seed {seed} differs: {dict(outcome.losses)}", *outcome.log]
    report = STATE / f"{seed}-{outcome.number}"
    report.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    shutil.copyfile(driver.server.folder / "workers.log", report.with_suffix(".log"))
    print("\n".join(lines))
    print(f"kept in {report}.txt, the workers' log beside it")


if __name__ == "__main__":
    sys.exit(main())
