"""The public view of an index in pgvector: one name, whatever version serves.

Invariants:

* the view is replaced in the caller's transaction, so a reader sees the old version or the new one;
* owner, options, comments and grants (of columns, too) stay as people set them;
* nothing that depends on the view is ever dropped: the view is replaced in place where its columns allow it, and
  otherwise the dependents are named before anything is done;
* the view goes when the version that it reads ends, which can only be when another store serves the index.
"""

from __future__ import annotations

from typing import Any, LiteralString

from psycopg import sql as composed

from sophia import sql
from sophia.errors import ConfigurationError
from sophia.indexing.versions import IndexVersion
from sophia.stores.base import Connection

Q = sql.load("views")
SCHEMA = "indexes"


def publish(connection: Connection, version: IndexVersion) -> None:
    """Let the index's view read this version, in the caller's transaction.

    Raises:
        ConfigurationError: the view has other columns than this code gives it, so it must be dropped and made anew,
            and other objects depend on it.
    """
    view = composed.Identifier(SCHEMA, version.index_name)
    present = _rows(connection, "columns", version)
    if not present:
        connection.execute(composed.SQL("CREATE VIEW {} AS {}").format(view, _definition(version)))
        return
    identity = _rows(connection, "identity", version)
    owner, options, comment = identity[0]
    options_clause = _options(options)
    if _fits(connection, version, present):
        statement = composed.SQL("CREATE OR REPLACE VIEW {} {} AS {}")
        connection.execute(statement.format(view, options_clause, _definition(version)))
    else:
        _refuse_dependents(connection, version)
        grants = _rows(connection, "grants", version)
        comments = _rows(connection, "column_comments", version)
        connection.execute(composed.SQL("DROP VIEW {}").format(view))
        statement = composed.SQL("CREATE VIEW {} {} AS {}")
        connection.execute(statement.format(view, options_clause, _definition(version)))
        _comment(connection, version, view, comment, comments)
        _grant(connection, version, view, grants)
        connection.execute(composed.SQL("ALTER VIEW {} OWNER TO {}").format(view, composed.Identifier(owner)))
    _let_owner_read(connection, version, owner)


def is_current(connection: Connection, version: IndexVersion) -> bool:
    """Whether nothing is to be done for the view of a version that was said to serve.

    An outdated view that other objects depend on stays as it is; the next switch names them.
    """
    names = [name for name, _ in _rows(connection, "columns", version)]
    if names[-2:] == ["fingerprint", "version"] or (names and _rows(connection, "dependents", version)):
        return True
    return connection.execute(Q["serves"], {"version_id": version.id}).fetchone() is None


def withdraw(connection: Connection, version: IndexVersion) -> None:
    """Drop the view if it still reads this version, which ends: the index is served from another store by now."""
    names = {"name": f'{SCHEMA}."{version.index_name}"', "table": f'{SCHEMA}."{version.store_name}"'}
    if connection.execute(Q["reads"], names).fetchone() is not None:
        connection.execute(composed.SQL("DROP VIEW {}").format(composed.Identifier(SCHEMA, version.index_name)))


def holders(connection: Connection, *relations: str) -> str:
    """The sessions that keep relations of this schema busy, for a message; empty if there are none."""
    names = [f'{SCHEMA}."{relation}"' for relation in relations]
    rows = connection.execute(Q["holders"], {"names": names}).fetchall()
    return ", ".join(f"pid {pid} {name or 'unnamed'} for {seconds or 0:.0f} s" for pid, name, seconds in rows)


def _rows(connection: Connection, query: str, version: IndexVersion) -> list[Any]:
    return connection.execute(Q[query], {"name": f'{SCHEMA}."{version.index_name}"'}).fetchall()


def _definition(version: IndexVersion) -> composed.Composed:
    text: LiteralString = Q["definition"]
    return composed.SQL(text).format(
        table=composed.Identifier(SCHEMA, version.store_name),
        model=composed.Literal(version.model.name),
        fingerprint=composed.Literal(version.fingerprint),
        number=composed.Literal(version.number),
    )


def _fits(connection: Connection, version: IndexVersion, present: list[Any]) -> bool:
    """Whether the view can be replaced in place: its columns are the first of the new ones, with their types."""
    probe = connection.execute(composed.SQL("SELECT * FROM ({}) v LIMIT 0").format(_definition(version)))
    wanted = [
        (column.name, kind)
        for column, kind in zip(probe.description or [], _types(connection, probe.description or []), strict=True)
    ]
    return wanted[: len(present)] == [tuple(row) for row in present]


def _types(connection: Connection, columns: Any) -> list[str]:
    """Types as PostgreSQL writes them. No column of the definition has a length."""
    rows = connection.execute(
        "SELECT format_type(t.oid::oid, NULL) FROM unnest(%s::bigint[]) WITH ORDINALITY t (oid, n) ORDER BY n",
        [[column.type_code for column in columns]],
    ).fetchall()
    return [row[0] for row in rows]


def _refuse_dependents(connection: Connection, version: IndexVersion) -> None:
    dependents = [row[0] for row in _rows(connection, "dependents", version)]
    if dependents:
        raise ConfigurationError(
            f"the view {SCHEMA}.{version.index_name} must be made anew, since its columns change, and these depend on "
            f"it: {', '.join(dependents)}; drop them, run this again, and create them anew"
        )


def _options(options: list[str]) -> composed.Composable:
    """`WITH (security_invoker=true)` and the like: a replaced view would lose them."""
    if not options:
        return composed.SQL("")
    pairs = [option.partition("=") for option in options]
    parts = [
        composed.SQL("{}={}").format(composed.Identifier(name), composed.Literal(value)) for name, _, value in pairs
    ]
    return composed.SQL("WITH ({})").format(composed.SQL(", ").join(parts))


def _comment(
    connection: Connection, version: IndexVersion, view: composed.Identifier, comment: str | None, columns: list[Any]
) -> None:
    if comment is not None:
        connection.execute(composed.SQL("COMMENT ON VIEW {} IS {}").format(view, composed.Literal(comment)))
    kept = {name for name, _ in _rows(connection, "columns", version)}
    for name, text in columns:
        if name in kept:
            column = composed.Identifier(SCHEMA, version.index_name, name)
            connection.execute(composed.SQL("COMMENT ON COLUMN {} IS {}").format(column, composed.Literal(text)))


def _grant(connection: Connection, version: IndexVersion, view: composed.Identifier, grants: list[Any]) -> None:
    """Exactly these grants: default privileges may have given the new view others."""
    for grantee in {row[1] for row in _rows(connection, "grants", version)}:
        connection.execute(composed.SQL("REVOKE ALL ON {} FROM {}").format(view, _role(grantee)))
    kept = {name for name, _ in _rows(connection, "columns", version)}
    for column, grantee, privilege, grantable in grants:
        if column is not None and column not in kept:
            continue
        connection.execute(
            composed.SQL("GRANT {} {} ON {} TO {} {}").format(
                composed.SQL(privilege),
                composed.SQL("({})").format(composed.Identifier(column)) if column else composed.SQL(""),
                view,
                _role(grantee),
                composed.SQL("WITH GRANT OPTION" if grantable else ""),
            )
        )


def _let_owner_read(connection: Connection, version: IndexVersion, owner: str) -> None:
    """A view reads its table with its owner's rights."""
    table = composed.Identifier(SCHEMA, version.store_name)
    connection.execute(composed.SQL("GRANT SELECT ON {} TO {}").format(table, composed.Identifier(owner)))


def _role(name: str | None) -> composed.Composable:
    return composed.SQL("PUBLIC") if name is None else composed.Identifier(name)
