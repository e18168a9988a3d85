"""`${NAME}` in a rendered file: found, filled in on the way to flowctl, and hidden in whatever is shown.

Estuary knows no variables: it publishes what a file says. So values are put in at the last moment, into files that only
this process may read, and are taken out of every message that comes back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sophia.catalog.models import Catalog
from sophia.errors import ConfigurationError

REFERENCE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")
HIDDEN = "***"
# A shorter value is no secret, and hiding each of its letters would make messages unreadable.
SHORTEST_HIDDEN = 4


def variables_in(value: Any) -> set[str]:
    """The variables that any text in the value refers to."""
    if isinstance(value, str):
        return set(REFERENCE.findall(value))
    if isinstance(value, dict):
        return {name for item in value.values() for name in variables_in(item)}
    if isinstance(value, list):
        return {name for item in value for name in variables_in(item)}
    return set()


def filled(value: Any, environ: Mapping[str, str], *, partly: bool = False) -> Any:
    """The value with every reference replaced; with `partly`, one that is not set stays as it is.

    Raises:
        ConfigurationError: naming every variable that is not set.
    """
    missing = sorted(name for name in variables_in(value) if not environ.get(name))
    if missing and not partly:
        raise ConfigurationError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; the rendered catalog refers to "
            f"{'it' if len(missing) == 1 else 'them'}"
        )
    return _replaced(value, environ)


def _replaced(value: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return REFERENCE.sub(lambda found: environ.get(found[1]) or found[0], value)
    if isinstance(value, dict):
        return {key: _replaced(item, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, environ) for item in value]
    return value


def as_published(
    rendered: Mapping[tuple[str, str], Any], live: Mapping[tuple[str, str], Any], environ: Mapping[str, str]
) -> dict[tuple[str, str], Any]:
    """The rendered definitions with every variable filled in: from the environment, else as it is published.

    So what is not known here makes no difference in a comparison.
    """
    return {key: _with_published(filled(model, environ, partly=True), live.get(key)) for key, model in rendered.items()}


def _with_published(rendered: Any, live: Any) -> Any:
    if isinstance(rendered, str):
        return live if variables_in(rendered) and isinstance(live, str) else rendered
    if isinstance(rendered, dict):
        names: Mapping[str, Any] = live if isinstance(live, dict) else {}
        return {name: _with_published(item, names.get(name)) for name, item in rendered.items()}
    if isinstance(rendered, list):
        # Triggers are a list as we render them, and come back with a name each.
        present = live if isinstance(live, list) else live.values() if isinstance(live, dict) else ()
        items = [*present, *[None] * len(rendered)]
        return [_with_published(item, known) for item, known in zip(rendered, items, strict=False)]
    return rendered


def secret_variables(catalog: Catalog, value: Any) -> set[str]:
    """Those of the value's variables that the catalog knows as secrets."""
    return variables_in(value) & {secret.env for secret in catalog.secrets}


def hidden(text: str, secrets: Iterable[str]) -> str:
    """The text with every secret value taken out, line by line where one has several."""
    parts = {line for secret in secrets for line in (secret, *secret.splitlines())}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= SHORTEST_HIDDEN:
            text = text.replace(part, HIDDEN)
    return text
