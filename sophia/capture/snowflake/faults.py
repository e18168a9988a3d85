"""What an error of Snowflake means, and what to do about it.

Snowflake quotes values in its messages ("Numeric value 'x' is not recognized"), so none of them is passed on: an error
is named by its number, its SQL state and the id of the query, under which Snowflake's own history shows all of it.

A `ConfigurationError` waits for a person; a `TemporaryError` is tried again with growing pauses.
"""

from __future__ import annotations

from typing import Any

from sophia.errors import ConfigurationError, SophiaError, SourceError, TemporaryError

# What a refused sign-in says, with its number where the server gave one: the connector itself reports all of them
# under one number.
_SIGN_IN: tuple[tuple[tuple[str, ...], type[SophiaError], str], ...] = (
    (
        ("incorrect username or password", "390100"),
        ConfigurationError,
        "wrong user or password; put the right ones into the URL",
    ),
    (
        ("jwt token is invalid", "390144"),
        ConfigurationError,
        "the key pair is refused: ALTER USER … SET RSA_PUBLIC_KEY = '…' with the public half, and see that the user, "
        "the account and this machine's clock are right",
    ),
    (
        ("390189", "role '", "role specified"),
        ConfigurationError,
        "the role of the URL does not exist or is not granted",
    ),
    (("390102", "temporarily locked"), TemporaryError, "the user is locked for some minutes after wrong sign-ins"),
    (("390101", "disabled"), ConfigurationError, "the user is disabled: ALTER USER … SET DISABLED = FALSE"),
    (
        ("390420", "390422", "ip address", "ip/token"),
        ConfigurationError,
        "a network policy keeps this address out; have it added to the policy",
    ),
    (
        ("404 not found", "290404"),
        ConfigurationError,
        "there is no such account; the URL's host is the account identifier, such as example-account",
    ),
    (("mfa", "multi-factor"), ConfigurationError, "the user needs a second factor; use a service user with a key pair"),
)
_EXPIRED = {390104, 390110, 390111, 390112, 390113, 390114, 390115, 390195, 390318}
_MISSING = {2003, 2043}
_SUSPENDED = ("suspended", "cannot be resumed", "could not be resumed")


def explain_sign_in(source: str, error: Any) -> SophiaError:
    """The error of a sign-in that failed."""
    text = str(error).lower()
    for marks, kind, fix in _SIGN_IN:
        if any(mark in text for mark in marks):
            return kind(f"source {source!r}: Snowflake refuses the sign-in: {fix}")
    return TemporaryError(
        f"source {source!r}: Snowflake does not answer the sign-in; see that the account in the URL is right and the "
        f"network up {_named(error)}"
    )


def explain(source: str, what: str, error: Any) -> SophiaError:
    """The error of a statement.

    Args:
        what: what it was about, as a person names it: a table, a stream.
    """
    number, state, text = _number(error), getattr(error, "sqlstate", None), str(error).lower()
    about = f"source {source!r}, {what}"
    if number in _EXPIRED:
        return TemporaryError(f"{about}: the session has ended; signing in again {_named(error)}")
    if "resource monitor" in text:
        return TemporaryError(
            f"{about}: a resource monitor has used up its credits, so the warehouse does not resume; raise its quota"
        )
    if number == 606 or "no active warehouse" in text:
        return ConfigurationError(
            f"{about}: no warehouse is active; name one in the URL (?warehouse=…), and "
            "GRANT USAGE ON WAREHOUSE … TO ROLE …"
        )
    if any(mark in text for mark in _SUSPENDED) or state == "57P03":
        return TemporaryError(
            f"{about}: the warehouse is suspended and does not resume; ALTER WAREHOUSE … RESUME, and let it resume by "
            "itself: ALTER WAREHOUSE … SET AUTO_RESUME = TRUE"
        )
    if number in (604, 630) or state == "57014":
        return TemporaryError(
            f"{about}: a statement was cancelled or took too long; raise SOPHIA_SNOWFLAKE__STATEMENT_SECONDS or take a "
            f"larger warehouse {_named(error)}"
        )
    if number in _MISSING:
        return SourceError(
            f"{about}: does not exist, or the role may not see it; create it, or GRANT USAGE ON DATABASE …, "
            f"GRANT USAGE ON SCHEMA … and GRANT SELECT ON TABLE … to the role of the URL {_named(error)}"
        )
    if number == 3001 or state == "42501":
        return SourceError(
            f"{about}: the role of the URL may not do this; grant it what docs/snowflake.md lists {_named(error)}"
        )
    if number == 904:
        return SourceError(
            f"{about}: a column is gone or was renamed; see the catalog's key and cursor {_named(error)}"
        )
    if "time travel data is not available" in text:
        return TemporaryError(
            f"{about}: Snowflake has no older state of the table yet, or kept none: see that "
            f"DATA_RETENTION_TIME_IN_DAYS is 1 or more {_named(error)}"
        )
    if type(error).__name__ == "ProgrammingError":
        return SourceError(f"{about}: Snowflake refuses a statement; its query history says why {_named(error)}")
    return TemporaryError(f"{about}: Snowflake does not answer {_named(error)}")


def _number(error: Any) -> int | None:
    try:
        return int(getattr(error, "errno", None) or "")
    except ValueError:
        return None


def _named(error: Any) -> str:
    """The error's number, SQL state and query, without its text."""
    parts = {"error": _number(error), "state": getattr(error, "sqlstate", None), "query": getattr(error, "sfqid", None)}
    return (
        "(" + ", ".join([f"{name} {value}" for name, value in parts.items() if value] or [type(error).__name__]) + ")"
    )
