"""Speaks to Estuary through its own command, `flowctl`.

A call gets an environment of its own: the token, a home that is removed afterwards (flowctl would keep the token in a
person's one), and little else. It has a time limit, and no secret of ours is in what it leaves in messages.

The token is an API key of a service account (`flow_sa_…`, given on as FLOW_API_KEY) or a refresh or access token
(FLOW_AUTH_TOKEN).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sophia.catalog.errors import CatalogError
from sophia.errors import ConfigurationError, SophiaError, TemporaryError
from sophia.estuary.catalog.references import hidden
from sophia.estuary.catalog.tree import read_tree
from sophia.settings import Settings

TOKEN_VARIABLES = ("FLOW_API_KEY", "FLOW_AUTH_TOKEN")
API_KEY = "flow_sa_"
# What flowctl needs of a person's environment: where programs are, proxies, certificates.
PASSED_ON = re.compile(r"^(PATH|LANG|LC_ALL|TMPDIR|SSL_CERT_(FILE|DIR)|(https?|no|all)_proxy|(HTTPS?|NO|ALL)_PROXY)$")
MESSAGE_LINES = 12

_CONFLICT = re.compile(r"expected publication ID \S+ was not matched")
_DENIED = re.compile(
    r"401 Unauthorized|403 Forbidden|\bnot (currently )?authenticated|\bUnauthenticated\b|JWT expired"
    r"|flowctl auth login"
)
_AWAY = re.compile(
    r"error sending request|[Cc]onnection (refused|reset|closed)|operation timed out|dns error"
    r"|502 Bad Gateway|503 Service Unavailable|504 Gateway Timeout"
)


class PublicationConflictError(TemporaryError):
    """Somebody else published one of the definitions meanwhile; nothing of this publication was taken."""


@dataclass(frozen=True)
class Flowctl:
    """The command with a token."""

    program: str
    token: str = field(repr=False)
    timeout_seconds: float = 600.0
    data_plane: str | None = None

    def pull(self, prefix: str) -> dict[tuple[str, str], Any]:
        """What is published below `prefix` (which ends in a slash), by kind and name.

        Raises:
            ConfigurationError: the token is refused, or what was pulled cannot be read.
            TemporaryError: Estuary is away or too slow.
            SophiaError: flowctl failed otherwise; with its last lines.
        """
        with tempfile.TemporaryDirectory(prefix="sophia-estuary-") as folder:
            root = Path(folder) / "flow.yaml"
            self._run(["catalog", "pull-specs", "--prefix", prefix, "--target", str(root)], Path(folder))
            if not root.exists():
                return {}
            tree = read_tree(root)
            if tree.problems:
                raise CatalogError(tree.problems)
            return {key: model for key, model in tree.models().items() if key[1].startswith(prefix)}

    def test(self, files: Mapping[str, str], secrets: Iterable[str] = ()) -> str:
        """Let Estuary build and test a tree of files without publishing it; raises as `publish`.

        `secrets` are values in the files that must be in no message.
        """
        return self._with_files(files, ["catalog", "test"], secrets)

    def publish(self, files: Mapping[str, str], secrets: Iterable[str] = ()) -> str:
        """Publish a tree of files (relative path to text, root `flow.yaml`); returns flowctl's last lines.

        Raises:
            PublicationConflictError: a definition is not at the publication that the files expect.
            ConfigurationError, TemporaryError, SophiaError: as `pull`.
        """
        return self._with_files(files, ["catalog", "publish", "--auto-approve"], secrets)

    def delete(self, names: Sequence[str]) -> str:
        """Remove definitions for good; raises as `pull`."""
        arguments = ["catalog", "delete", "--dangerous-auto-approve"]
        for name in names:
            arguments += ["--name", name]
        with tempfile.TemporaryDirectory(prefix="sophia-estuary-") as folder:
            return self._run(arguments, Path(folder))

    def _with_files(self, files: Mapping[str, str], arguments: list[str], secrets: Iterable[str]) -> str:
        with tempfile.TemporaryDirectory(prefix="sophia-estuary-") as folder:
            for path, text in files.items():
                write_private(Path(folder) / path, text)
            plane = ["--init-data-plane", self.data_plane] if self.data_plane else []
            command = [*arguments, *plane, "--source", str(Path(folder) / "flow.yaml")]
            return self._run(command, Path(folder), tuple(secrets))

    def _run(self, arguments: list[str], folder: Path, secrets: tuple[str, ...] = ()) -> str:
        what = f"flowctl {' '.join(arguments[:2])}"
        command = [self.program, *arguments]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=self._environment(folder),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self.timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            text = f"{what} did not end within {self.timeout_seconds:.0f} s; raise SOPHIA_FLOWCTL__TIMEOUT_SECONDS"
            raise TemporaryError(text) from None
        except OSError as error:
            raise ConfigurationError(f"{self.program} cannot be run: {error.strerror}") from None
        said = hidden(f"{done.stdout}\n{done.stderr}", (self.token, *secrets)).replace(str(folder), "")
        if done.returncode == 0:
            return _last(hidden(done.stdout, (self.token, *secrets)))
        raise _failure(what, said)

    def _environment(self, folder: Path) -> dict[str, str]:
        passed = {name: value for name, value in os.environ.items() if PASSED_ON.match(name)}
        home = folder / ".home"
        home.mkdir(mode=0o700, exist_ok=True)
        variable = TOKEN_VARIABLES[0] if self.token.startswith(API_KEY) else TOKEN_VARIABLES[1]
        return {**passed, "HOME": str(home), "XDG_CONFIG_HOME": str(home), variable: self.token, "NO_COLOR": "1"}


def flowctl_of(settings: Settings, environ: Mapping[str, str]) -> Flowctl:
    """The command as the settings and the environment name it.

    Raises:
        ConfigurationError: it is not installed, or there is no token; the message says what to do.
    """
    options = settings.flowctl
    program = shutil.which(options.program, path=environ.get("PATH"))
    if program is None:
        raise ConfigurationError(
            f"{options.program} is not installed: install Estuary's flowctl and put it on the PATH, or name it in "
            "SOPHIA_FLOWCTL__PROGRAM"
        )
    own = settings.estuary.token.get_secret_value() if settings.estuary.token else None
    token = next((environ[name] for name in TOKEN_VARIABLES if environ.get(name)), own)
    if not token:
        raise ConfigurationError(
            "there is no token for Estuary: set FLOW_API_KEY (a service account's key), FLOW_AUTH_TOKEN, or "
            "SOPHIA_ESTUARY__TOKEN"
        )
    return Flowctl(program, token, options.timeout_seconds, options.data_plane)


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user may read, from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)


def _failure(what: str, said: str) -> SophiaError:
    last = _last(said)
    if _CONFLICT.search(said):
        return PublicationConflictError(
            f"{what}: somebody else published meanwhile, and nothing was changed; run `sophia estuary plan` again\n"
            f"{last}"
        )
    if _DENIED.search(said):
        return ConfigurationError(f"{what}: Estuary refuses the token, or it may not do this\n{last}")
    if _AWAY.search(said):
        return TemporaryError(f"{what}: Estuary is away\n{last}")
    return SophiaError(f"{what} failed\n{last}")


def _last(text: str) -> str:
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-MESSAGE_LINES:])
