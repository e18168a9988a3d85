"""What must never be in a rendered file: public addresses and anything that looks like a credential."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from sophia.platform.reconcile import Finding, Rendered

ADDRESS = re.compile(r"(?<![\d.\w])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)")
CREDENTIALS = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password in a URL": re.compile(r"[a-z][a-z0-9+.-]*://[^\s/:@${}()]+:[^\s/@${}()]+@"),
    "a JSON web token": re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}\b"),
    "a Slack token": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    "an access key": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "an API key": re.compile(r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{20,}"),
}


def exposures(rendered: Rendered) -> Iterator[Finding]:
    """Public addresses and credentials in any of the files; the finding never repeats a credential."""
    for path, text in rendered.files.items():
        for number, line in enumerate(text.splitlines(), 1):
            for match in ADDRESS.finditer(line):
                if _public(match.group()):
                    yield Finding(
                        "error",
                        "public-address",
                        f"{path}:{number}",
                        f"{match.group()} is a public address",
                        "take it from a variable",
                    )
            for what, pattern in CREDENTIALS.items():
                if pattern.search(line):
                    yield Finding(
                        "error",
                        "credential",
                        f"{path}:{number}",
                        f"holds {what}",
                        "refer to a secret of the catalog and replace the value where it was used",
                    )


def _public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False
