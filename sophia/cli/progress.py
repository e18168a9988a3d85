"""How a repair is shown: a bar on a terminal, plain lines elsewhere, nothing beside JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sophia.indexing.watch import RepairProgress


@contextmanager
def repair_shown(*, quiet: bool) -> Iterator[Callable[[RepairProgress], None] | None]:
    """What to call with each step of a repair; None if nothing is to be shown."""
    from rich.console import Console

    console = Console()
    if quiet:
        yield None
    elif console.is_terminal and not console.is_dumb_terminal:
        with _bar(console) as update:
            yield update
    else:
        from sophia.embedding.progress import Lines

        lines = Lines(typer.echo)
        yield lambda step: lines(step, ends=step.ended)


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[RepairProgress], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None, figures="")

        def update(step: RepairProgress) -> None:
            progress.update(
                task,
                description=str(step) if step.building else f"{step.label} {step.done}/{step.shards}",
                completed=step.embedding.done,
                total=step.embedding.total,
                figures="" if step.building else str(step.embedding),
            )

        yield update
