"""The commands `sophia estuary render|plan|apply`: Estuary's catalog as code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sophia.catalog.models import Environment
from sophia.cli.context import Context, Json, begin, show_json

if TYPE_CHECKING:
    from sophia.estuary.catalog.discovery import Discovered
    from sophia.estuary.catalog.publish import Prepared

In = Annotated[Environment, typer.Option("--environment", "-e", help="Whose tree.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to `sophia estuary`."""
    app.command()(render)
    app.command()(plan)
    app.command()(apply)


def render(
    environment: Annotated[
        Environment | None, typer.Option("--environment", "-e", help="Whose tree; all of them if unset.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write to, one folder an environment; else print.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option("--check", help="Check this flow.yaml with its imports instead of rendering.")
    ] = None,
) -> None:
    """Write Estuary's flow.yaml tree from the catalog, checked; or check one that is there."""
    from sophia.estuary.catalog.files import write_tree
    from sophia.estuary.catalog.flow_checks import check_file
    from sophia.estuary.catalog.publish import ENVIRONMENTS, rendered_models
    from sophia.estuary.catalog.render import render_tree

    if check is not None:
        typer.echo(f"{check}: {len(check_file(check).specs)} definitions, nothing wrong")
        return
    context = begin()
    discovered = _discovered(context)
    for name in (environment,) if environment else ENVIRONMENTS:
        models = rendered_models(context.catalog, name, discovered.tables)
        files = render_tree(context.catalog, name, discovered.tables)
        if output is None:
            for path, text in files.items():
                typer.echo(f"# --- {name}/{path}\n{text}", nl=False)
            continue
        stale = write_tree(output / name, files)
        removed = f", {len(stale)} old ones removed" if stale else ""
        typer.echo(f"{output / name}: {len(models)} definitions in {len(files)} files{removed}")


def plan(
    environment: In = "production",
    backfill: Annotated[
        list[str] | None, typer.Option("--backfill", help="Collection to capture again from its beginning.")
    ] = None,
    as_json: bool = Json,
) -> None:
    """Compare the rendered catalog with what is published at Estuary; changes nothing."""
    context = begin()
    prepared = _prepared(context, environment, backfill or [])
    if as_json:
        show_json(_plan_json(prepared))
        return
    _show_plan(prepared)


def apply(
    environment: In,
    yes: Annotated[
        bool, typer.Option("--yes", help="Publish; without it the plan is shown and nothing is done.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Also remove what is published below the prefix and not rendered.")
    ] = False,
    secrets: Annotated[
        bool, typer.Option("--secrets", help="Publish every task with a secret again, as after a rotation.")
    ] = False,
    backfill: Annotated[
        list[str] | None, typer.Option("--backfill", help="Collection to capture again from its beginning.")
    ] = None,
    as_json: bool = Json,
) -> None:
    """Publish what differs, through flowctl. Exit code 1 without --yes if something is to do."""
    from sophia.errors import SophiaError
    from sophia.estuary.catalog.flowctl import flowctl_of
    from sophia.estuary.catalog.publish import apply as publish

    context = begin()
    prepared = _prepared(context, environment, backfill or [])
    if not as_json:
        _show_plan(prepared)
    if prepared.plan.empty and not secrets and not (prune and prepared.plan.of("remove")):
        if as_json:
            show_json({**_plan_json(prepared), "published": [], "removed": []})
        return
    if not yes:
        raise SophiaError("nothing was published; say --yes to do it")
    done = publish(
        context.catalog, prepared, flowctl_of(context.settings, os.environ), os.environ, prune=prune, secrets=secrets
    )
    if as_json:
        show_json(
            {
                **_plan_json(prepared),
                "published": ["/".join(key) for key in done.published],
                "removed": ["/".join(key) for key in done.removed],
            }
        )
        return
    typer.echo(f"{len(done.published)} definitions published, {len(done.removed)} removed\n{done.message}")


def _discovered(context: Context) -> Discovered:
    from sophia.estuary.catalog.discovery import discover

    discovered = discover(context.catalog, context.settings)
    for note in discovered.notes:
        typer.echo(note, err=True)
    return discovered


def _prepared(context: Context, environment: Environment, backfill: list[str]) -> Prepared:
    from sophia.estuary.catalog.flowctl import flowctl_of
    from sophia.estuary.catalog.publish import prepare

    flowctl = flowctl_of(context.settings, os.environ)
    tables = _discovered(context).tables
    return prepare(context.catalog, environment, flowctl, os.environ, tables, backfill)


def _show_plan(prepared: Prepared) -> None:
    for change in prepared.plan.of("add", "change", "remove"):
        typer.echo(f"{change.action} {change.kind} {change.name}")
        for danger in change.dangers:
            typer.secho(f"  ! {danger}", fg=typer.colors.YELLOW)
        if change.action != "remove":
            typer.echo(change.diff, nl=False)
    if prepared.unset:
        typer.echo(f"not compared, since they are not set here: {', '.join(prepared.unset)}", err=True)
    typer.echo(f"{prepared.environment}: {prepared.plan.summary()}")


def _plan_json(prepared: Prepared) -> dict[str, Any]:
    return {
        "environment": prepared.environment,
        "changes": [
            {
                "action": change.action,
                "kind": change.kind,
                "name": change.name,
                "diff": change.diff,
                "dangers": change.dangers,
            }
            for change in prepared.plan.of("add", "change", "remove")
        ],
        "unset": prepared.unset,
    }
