"""The command `sophia`: parse, build settings, call one function, map errors to exit codes.

Exit codes: 0 done; 1 the answer is no (a proof that fails, an unknown name); 2 something must be configured first;
3 a system is away, try again. Every command that shows data takes `--json`.
"""

from __future__ import annotations

import logging
import signal
import sys

import typer

from sophia.cli import estuary, operate, processes, query, status

app = typer.Typer(
    name="sophia",
    help="An AI platform as one dependency graph: a changed row is searchable within 100 ms, exactly once in effect.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (query, status, operate, processes, estuary):
    module.register(app)


@app.callback()
def _options(verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what happens inside.")) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    # Alembic and the model libraries say much that is no news.
    for name in ("alembic", "sentence_transformers", "httpx", "pinecone"):
        logging.getLogger(name).setLevel(logging.WARNING)


def main() -> None:
    """Entry point of the console script."""
    import psycopg

    from sophia.errors import SophiaError

    # A command that is told to end leaves nothing behind, as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app()
    except SophiaError as error:
        typer.secho(f"sophia: {error}", err=True, fg=typer.colors.RED)
        sys.exit(error.exit_code)
    except psycopg.OperationalError as error:
        typer.secho(f"sophia: the database is away: {str(error).strip()}", err=True, fg=typer.colors.RED)
        sys.exit(3)
    except psycopg.DataError as error:
        # A filter NaN, a NUL character: no fault of ours, and nothing to try again.
        typer.secho(f"sophia: a value cannot be used: {str(error).splitlines()[0]}", err=True, fg=typer.colors.RED)
        sys.exit(SophiaError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
