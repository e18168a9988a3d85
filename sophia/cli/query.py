"""Commands that only look: search, versions, why, plan, doctor, verify, dead-letters, catalog."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from sophia.cli.context import Json, begin, connected, minute, show_json, show_table


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(search)
    app.command()(versions)
    app.command()(why)
    app.command()(plan)
    app.command()(doctor)
    app.command()(verify)
    app.command("dead-letters")(dead_letters)
    app.command()(catalog)


def search(
    index: Annotated[str, typer.Argument(help="Name of the index.")],
    text: Annotated[str, typer.Argument(help="What to look for.")],
    filters: Annotated[list[str] | None, typer.Option("--filter", help="FIELD=VALUE; may be given again.")] = None,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Fuse vector and full-text ranks.")] = False,
    k: Annotated[int, typer.Option("-k", help="How many results.")] = 5,
    as_json: bool = Json,
) -> None:
    """Search an index."""
    from sophia.embedding import load_embedder
    from sophia.indexing.search import search as run

    context = begin()
    wanted = dict(parse_filter(item) for item in filters or [])
    with connected(context) as (_, connection):
        hits = run(
            connection,
            index,
            text,
            lambda version: load_embedder(version.model, version.index.precision, context.settings),
            k=k,
            filters=wanted,
            hybrid=hybrid,
            stores=context.stores,
        )
    if as_json:
        show_json([{name: getattr(hit, name) for name in hit.__slots__} for hit in hits])
        return
    show_table(
        f"{index}: {text}",
        ["score", "key", "content", "metadata"],
        [
            (f"{hit.score:.3f}", hit.key, _shorten(hit.content), " ".join(f"{k}={v}" for k, v in hit.metadata.items()))
            for hit in hits
        ],
        right=["score"],
    )


def parse_filter(item: str) -> tuple[str, Any]:
    """`field=value`; a value that is JSON (number, true, quoted text) is taken as such.

    Raises:
        SophiaError: no `=`.
    """
    from sophia.errors import SophiaError

    field, equals, value = item.partition("=")
    if not equals:
        raise SophiaError(f"filter {item!r} is not FIELD=VALUE")
    try:
        return field, json.loads(value)
    except ValueError:
        return field, value


def versions(
    index: Annotated[str, typer.Argument(help="Name of the index.")],
    as_json: bool = Json,
) -> None:
    """The versions of an index: which serves, which are fed, which are gone."""
    from sophia.indexing.promotion import version_records

    with connected(begin()) as (_, connection):
        found = version_records(connection, index)
    if as_json:
        show_json([{name: getattr(record, name) for name in record.__slots__} for record in found])
        return
    show_table(
        f"versions of {index}",
        ["", "state", "since", "model", "position", "documents"],
        [
            (
                f"v{r.version}",
                r.state,
                minute(r.superseded_at or r.promoted_at or r.created_at),
                f"{r.model} ({r.dimension})",
                r.position,
                r.documents,
            )
            for r in found
        ],
        right=["position", "documents"],
    )


def why(
    index: Annotated[str, typer.Argument(help="Name of the index.")],
    key: Annotated[str, typer.Argument(help='Key of the document: 42, abc, or ["a", 2].')],
    as_json: bool = Json,
) -> None:
    """Where a document's vectors came from: row, log position, commit, spans, model, backend, code, image, run."""
    from sophia.indexing.status import why as explain

    context = begin()
    with connected(context) as (_, connection):
        found = explain(connection, index, key, stores=context.stores)
    if as_json:
        show_json(found)
        return
    history, chunks = found.pop("history"), found.pop("chunks")
    show_table(f"{index} {found['key']}", ["fact", "value"], [(name, value) for name, value in found.items()])
    show_table(
        "chunks",
        ["chunk", "span", "content hash", "lsn", "txid", "committed", "run"],
        [
            (
                c["chunk"],
                f"{c['start']}..{c['end']}",
                c["content_hash"],
                c["lsn"],
                c["txid"],
                c["committed_at"],
                c["run"],
            )
            for c in chunks
        ],
    )
    show_table(
        "last changes",
        ["op", "lsn", "txid", "committed", "received"],
        [(h["op"], h["lsn"], h["txid"], h["committed_at"], h["received_at"]) for h in history],
    )


def plan(
    kind: Annotated[str | None, typer.Option("--kind", help="Only this kind.")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Print the diffs, too.")] = False,
    as_json: bool = Json,
) -> None:
    """What would change, everywhere. Changes nothing."""
    from sophia.planning import plan_everything

    context = begin()
    with connected(context) as (_, connection):
        entries = plan_everything(context.catalog, context.settings, connection)
    entries = [entry for entry in entries if kind is None or entry.kind == kind]
    if as_json:
        show_json([{name: getattr(entry, name) for name in entry.__slots__} for entry in entries])
        return
    show_table("plan", ["kind", "name", "change"], [(e.kind, e.name, e.summary) for e in entries if e.changes])
    still = sum(1 for entry in entries if not entry.changes)
    typer.echo(f"{len(entries) - still} to change, {still} in step; nothing was applied")
    if diff:
        for entry in entries:
            if entry.diff:
                typer.echo(entry.diff)


def doctor(as_json: bool = Json) -> None:
    """Check every setting and outside system; each fault comes with its fix. Exit code 1 if something is broken."""
    from sophia.doctor import examine

    findings = examine()
    if as_json:
        show_json([{name: getattr(f, name) for name in f.__slots__} for f in findings])
    else:
        marks = {"ok": "ok", "off": "-", "warn": "WARN", "fail": "FAIL"}
        show_table("doctor", ["", "what", "found", "fix"], [(marks[f.state], f.what, f.found, f.fix) for f in findings])
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


def verify(
    index: Annotated[str, typer.Argument(help="Name of the index.")],
    as_json: bool = Json,
) -> None:
    """Prove that an index equals its source, or list what differs. Exit code 1 if it does."""
    from sophia.embedding import load_embedder
    from sophia.indexing.verify import verify as prove
    from sophia.indexing.versions import serving_version

    context = begin()
    with connected(context) as (_, connection):
        version = serving_version(connection, index)
        embedder = load_embedder(version.model, version.index.precision, context.settings)
        proof = prove(connection, version, context.stores.of(version), embedder)
    keys = proof.difference.keys()
    if as_json:
        show_json({"holds": proof.holds, "sentence": proof.sentence(), "lsn": proof.lsn, "keys": keys})
    else:
        typer.echo(proof.sentence())
        for name, found in keys.items():
            if found:
                typer.echo(f"  {name}: {', '.join(found[:20])}{' …' if len(found) > 20 else ''}")
    if not proof.holds:
        raise typer.Exit(1)


def dead_letters(
    limit: Annotated[int, typer.Option(help="Most rows to show.")] = 100,
    replay: Annotated[
        bool, typer.Option("--replay", help="Take parked deliveries again; have the capture read other rows again.")
    ] = False,
    as_json: bool = Json,
) -> None:
    """Documents that could not be taken or indexed, with the reason."""
    from sophia.estuary.intake.parked import replay_parked
    from sophia.estuary.intake.take import feeds
    from sophia.inbox import request_reread
    from sophia.indexing.status import dead_letters as listed

    context = begin()
    with connected(context) as (_, connection):
        if replay:
            done = replay_parked(connection, feeds(connection, context.catalog, context.settings.profile))
            typer.echo(
                f"{done.taken} parked deliveries were taken, {done.parked} stay parked, {done.unknown} are of "
                "collections that Estuary does not feed here",
                err=True,
            )
            count = request_reread(connection)
            typer.echo(f"{count} rows will be read again by the running capture within seconds", err=True)
        rows = listed(connection, limit)
    if as_json:
        show_json(rows)
        return
    show_table(
        "dead letters",
        ["collection", "key", "index", "stage", "reason", "attempts", "last seen"],
        [
            tuple(row[c] for c in ("collection", "key", "index", "stage", "reason", "attempts", "last_seen"))
            for row in rows
        ],
    )


def catalog(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the files.")] = False,
    as_json: bool = Json,
) -> None:
    """Check the catalog and count its entries."""
    from sophia.catalog import Catalog

    if schema:
        show_json(Catalog.json_schema())
        return
    found = begin().catalog
    kinds = (
        "nodes",
        "images",
        "services",
        "sources",
        "collections",
        "models",
        "indexes",
        "secrets",
        "workflows",
        "frontends",
    )
    counts = {kind: len(getattr(found, kind)) for kind in kinds}
    if as_json:
        show_json(counts)
        return
    show_table("catalog", ["kind", "entries"], list(counts.items()), right=["entries"])


def _shorten(text: str, length: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
