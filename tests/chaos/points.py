"""The failpoints of `sophia/`: which process reaches each, and what brings it about. A test holds the list complete."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

SOPHIA = Path(__file__).parents[2] / "sophia"


@dataclass(frozen=True)
class Point:
    """A failpoint.

    Attributes:
        roles: the workers that come by.
        need: the fault that leads there, where everyday work does not.
        seconds: how long it is waited for. A scan comes round to what was tampered with, a repair looks at it first.
    """

    roles: tuple[str, ...]
    need: str = ""
    seconds: float = 4.0


WRITERS = ("indexer", "repair", "promote")
POINTS: dict[str, Point] = {
    "capture.slot_created": Point(("capture",), "drop_slot"),
    "capture.generation_begun": Point(("capture",), "drop_slot"),
    "capture.snapshot.before_commit": Point(("capture",), "drop_slot"),
    "capture.snapshot.after_commit": Point(("capture",), "drop_slot"),
    "capture.sweep": Point(("capture",), "drop_slot"),
    "capture.snapshot_done.before_commit": Point(("capture",), "recreate_table"),
    "capture.snapshot_done.after_commit": Point(("capture",), "recreate_table"),
    "capture.flush.before_commit": Point(("capture",)),
    "capture.flush.after_commit": Point(("capture",)),
    "capture.acknowledged": Point(("capture",)),
    "capture.reread.before_commit": Point(("capture",), "ask_reread"),
    "capture.reread.after_commit": Point(("capture",), "ask_reread"),
    "writer.embedded": Point(WRITERS),
    "writer.ledger": Point(WRITERS),
    "writer.store": Point(WRITERS),
    "writer.before_commit": Point(WRITERS),
    "writer.after_commit": Point(WRITERS),
    "repair.batch": Point(("indexer", "promote"), "drop_slot"),
    "repair.before_done": Point(("repair",)),
    "repair.mended": Point(("repair",), "tamper", 12.0),
    "scan.found": Point(("indexer",), "tamper", 12.0),
    "scan.mended": Point(("indexer",), "tamper", 12.0),
    "scan.before_commit": Point(("indexer",)),
    "scan.after_commit": Point(("indexer",)),
    "absorb.before_commit": Point(("indexer",)),
    "absorb.after_commit": Point(("indexer",)),
    "promote.before_switch": Point(("promote", "rollback")),
    "promote.before_commit": Point(("promote", "rollback")),
    "promote.after_commit": Point(("promote", "rollback")),
    "retire.before_drop": Point(("retire",)),
    "retire.after_drop": Point(("retire",)),
    "erase.before_commit": Point(("erase",)),
    "erase.after_commit": Point(("erase",)),
}
# Points of processes that do not run here, and the test that kills there.
ELSEWHERE: dict[str, str] = {
    "intake.before_commit": "tests/integration/intake/test_process.py",
    "intake.after_commit": "tests/integration/intake/test_process.py",
    "external.pending": "tests/integration/stores/test_external_way.py",
    "external.written": "tests/integration/stores/test_external_way.py",
    "external.before_commit": "tests/integration/stores/test_external_way.py",
    "publication.before": "tests/integration/stores/test_external_way.py",
    "publication.after": "tests/integration/stores/test_external_way.py",
    "drop.after": "tests/integration/stores/test_external_way.py",
    "erase.outside": "tests/integration/stores/test_external_way.py",
    "stand_in.backfilled": "tests/estuary/test_killed.py",
    "stand_in.journal.before_acknowledgement": "tests/estuary/test_killed.py",
    "stand_in.sent.before_checkpoint": "tests/estuary/test_killed.py",
    "stand_in.committed.before_trigger": "tests/estuary/test_killed.py",
    "estuary.reread.before_commit": "tests/estuary/test_killed.py",
    "estuary.reread.after_commit": "tests/estuary/test_killed.py",
    "estuary.sweep.before_commit": "tests/estuary/test_killed.py",
    "estuary.sweep.after_commit": "tests/estuary/test_killed.py",
    "weaviate.removed": "tests/integration/stores/test_weaviate_killed.py",
    "weaviate.put": "tests/integration/stores/test_weaviate_killed.py",
    "weaviate.surplus": "tests/integration/stores/test_weaviate_killed.py",
    "snowflake.generation_begun": "tests/integration/snowflake/test_streams.py",
    "snowflake.read": "tests/integration/snowflake/test_cursor.py",
    "snowflake.cursor.before_commit": "tests/integration/snowflake/test_cursor.py",
    "snowflake.cursor.after_commit": "tests/integration/snowflake/test_cursor.py",
    "snowflake.compare.before_commit": "tests/integration/snowflake/test_cursor.py",
    "snowflake.compare.deleted": "tests/integration/snowflake/test_cursor.py",
    "snowflake.reread.before_commit": "tests/integration/snowflake/test_cursor.py",
    "snowflake.reread.after_commit": "tests/integration/snowflake/test_streams.py",
    "snowflake.snapshot.after_commit": "tests/integration/snowflake/test_streams.py",
    "snowflake.snapshot_done.after_commit": "tests/integration/snowflake/test_streams.py",
    "snowflake.staged": "tests/integration/snowflake/test_streams.py",
    "snowflake.before_commit": "tests/integration/snowflake/test_streams.py",
    "snowflake.after_commit": "tests/integration/snowflake/test_streams.py",
    "snowflake.cleared": "tests/integration/snowflake/test_streams.py",
}


def named_in_code() -> set[str]:
    """Every name that a call `failpoint("…")` in `sophia/` has."""
    names = set()
    for path in SOPHIA.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint":
                (argument,) = node.args
                assert isinstance(argument, ast.Constant), f"{path}:{node.lineno}: a failpoint's name is a literal"
                names.add(str(argument.value))
    return names
