"""Who may deliver what: tokens for each collection, so that each can be rotated, and taken away, by itself.

A collection that is named has its own tokens and no others; `*` holds those of all that are not named, and `/events`
those of commit events. Without any token the service listens to this machine alone.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable

from sophia.errors import ConfigurationError
from sophia.estuary.intake.events import NAME as EVENTS
from sophia.services.bearer import LOOPBACK, TokenSet
from sophia.settings import IntakeSettings

VARIABLE = "SOPHIA_INTAKE__TOKENS"
REST = "*"


class IntakeTokens:
    """The tokens by what they open.

    Args:
        names: full Estuary names of the collections that are taken.

    Raises:
        ConfigurationError: the setting is malformed, names what is not taken, leaves something without a token, or is
            unset while the service would listen beyond this machine.
    """

    def __init__(self, settings: IntakeSettings, names: Iterable[str]) -> None:
        given = _given(settings)
        opened = [*names, EVENTS]
        if not given and settings.host not in LOOPBACK:
            raise ConfigurationError(
                f"the intake would be open to all who reach {settings.host}: set {VARIABLE}, or "
                "SOPHIA_INTAKE__HOST=127.0.0.1"
            )
        for name in given:
            if name not in opened and name != REST:
                near = difflib.get_close_matches(name, [*opened, REST], n=1)
                hint = f'; did you mean "{near[0]}"?' if near else f"; there are {', '.join([*opened, REST])}"
                raise ConfigurationError(f"{VARIABLE} names what is not taken here: {name!r}{hint}")
        if given:
            without = [name for name in opened if name not in given and REST not in given]
            if without:
                raise ConfigurationError(f"{VARIABLE} holds no token for {', '.join(without)}; name these, or `{REST}`")
        self._rest = given.get(REST)
        self._by_name = {name: given[name] for name in opened if name in given}
        self.required = bool(given)

    def accepts(self, name: str | None, token: bytes | None) -> bool:
        """Whether a token opens a collection or `/events`; of what is not known (None), whether it opens anything."""
        if not self.required:
            return True
        if token is None:
            return False
        if name is not None:
            tokens = self._by_name.get(name, self._rest)
            return tokens is not None and tokens.accepts(token)
        known = [*self._by_name.values(), *([self._rest] if self._rest is not None else [])]
        # All of them are looked at, so that the time does not tell which.
        return sum(tokens.accepts(token) for tokens in known) > 0


def _given(settings: IntakeSettings) -> dict[str, TokenSet]:
    if settings.tokens is None:
        return {}
    try:
        found = json.loads(settings.tokens.get_secret_value())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise ConfigurationError(
            f'{VARIABLE} must be a JSON object of texts, such as {{"sophia/conversations": "new,old", "*": "other"}}'
        )
    tokens = {name: TokenSet(text) for name, text in found.items()}
    for name, held in tokens.items():
        if not held:
            raise ConfigurationError(f"{VARIABLE} holds no token for {name!r}; separate several by commas")
    return tokens
