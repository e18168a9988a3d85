"""Writes a rendered tree to a folder, and removes what an earlier rendering left there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sophia.estuary.catalog.render import HEADER


def write_tree(folder: Path, files: Mapping[str, str]) -> tuple[str, ...]:
    """Write every file below `folder`; returns what was removed, by path.

    Only files that bear our header are ever removed. A file is replaced whole, never half.
    """
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.new")
        beside.write_text(text, encoding="utf-8")
        beside.replace(target)
    mark = HEADER.splitlines()[0]
    stale = [
        file
        for file in sorted(folder.rglob("*.yaml"))
        if str(file.relative_to(folder)) not in files and file.read_text(encoding="utf-8").startswith(mark)
    ]
    for file in stale:
        file.unlink()
    return tuple(str(file.relative_to(folder)) for file in stale)
