"""Frontends: Vercel project, `vercel.json`, variables by name and the DNS records of the registrar."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sophia.catalog.models import Catalog, Frontend
from sophia.platform.dockerfile import SECRET_NAME
from sophia.platform.exposure import exposures
from sophia.platform.reconcile import Finding, Observed, Plan, Rendered, make_plan
from sophia.platform.systems import PlatformSystems
from sophia.platform.text import to_json, to_yaml

DNS_TARGET = "${SOPHIA_VERCEL_DNS_TARGET}"
DNS_TTL_SECONDS = 300
PUBLIC_PREFIXES = ("NEXT_PUBLIC_", "VITE_")
"""Variables with these prefixes are compiled into what every visitor downloads."""

SECURITY_HEADERS = {
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "strict-origin-when-cross-origin",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class FrontendReconciler:
    """Frontends of the catalog."""

    catalog: Catalog
    systems: PlatformSystems
    kind: str = "frontends"

    def entries(self) -> tuple[Frontend, ...]:
        """All frontends, in the order of the catalog."""
        return self.catalog.frontends

    def render(self, entry: Frontend) -> Rendered:
        """Project, build configuration and DNS records; raises UnknownEntryError."""
        folder = f"frontends/{entry.name}"
        return Rendered(
            {
                f"{folder}/dns.yaml": to_yaml(self._dns(entry)),
                f"{folder}/project.json": to_json(self._project(entry)),
                f"{folder}/vercel.json": to_json(_configuration(self.catalog, entry)),
            }
        )

    def observe(self, entry: Frontend) -> Observed:
        """Not read back from Vercel in this version."""
        if self.systems.vercel_token is None:
            return Observed.unknown("no Vercel token is configured (set SOPHIA_VERCEL_TOKEN)")
        return Observed.unknown(f"project {entry.project} is not read back from Vercel; the plan shows all of it")

    def plan(self, entry: Frontend) -> Plan:
        """What an apply would have to do; raises UnknownEntryError."""
        return make_plan(self.kind, entry.name, self.render(entry), self.observe(entry))

    def verify(self, entry: Frontend) -> tuple[Finding, ...]:
        """Domains, variables, and that the service it calls can be reached from a browser."""
        return tuple(self._findings(entry))

    def _project(self, entry: Frontend) -> dict[str, Any]:
        targets = ["preview", "production"]
        plain = [
            {"key": key, "target": targets, "type": "plain", "value": value} for key, value in sorted(entry.env.items())
        ]
        secrets = sorted((self.catalog.secret(name) for name in entry.secrets), key=lambda secret: secret.env)
        # Without values: whoever applies this reads them from the secret's provider.
        referred = [
            {"key": secret.env, "secret": secret.name, "target": ["production"], "type": "sensitive"}
            for secret in secrets
        ]
        return {
            "domains": sorted(entry.domains),
            "environment": [*plain, *referred],
            "framework": None if entry.framework == "static" else entry.framework,
            "loadTargetMs": entry.load_target_ms,
            "name": entry.project,
            "nodeVersion": entry.node_version,
            "rootDirectory": entry.root,
        }

    def _dns(self, entry: Frontend) -> dict[str, Any]:
        records = [
            {"name": domain, "ttlSeconds": DNS_TTL_SECONDS, "type": "CNAME", "value": DNS_TARGET}
            for domain in sorted(entry.domains)
        ]
        return {"provider": entry.dns, "records": records}

    def _findings(self, entry: Frontend) -> Iterator[Finding]:
        rendered = self.render(entry)
        where = f"frontends/{entry.name}"
        yield from exposures(rendered)
        for path, text in rendered.files.items():
            if path.endswith(".json"):
                json.loads(text)
        for key in sorted(entry.env):
            if SECRET_NAME.search(key):
                message = f"{key} looks like a secret and has a plain value"
                yield Finding("error", "secret-value", where, message, "name it in secrets instead")
        for name in entry.secrets:
            if self.catalog.secret(name).env.startswith(PUBLIC_PREFIXES):
                yield Finding("error", "public-secret", where, f"{name} would be compiled into the page")
        owners = Counter(domain for frontend in self.catalog.frontends for domain in frontend.domains)
        for domain in entry.domains:
            if owners[domain] > 1:
                yield Finding("error", "shared-domain", where, f"{domain} belongs to another frontend too")
            if not domain.endswith(f".{self.catalog.cluster.domain}"):
                message = f"{domain} is outside {self.catalog.cluster.domain}"
                yield Finding("warning", "foreign-domain", where, message, "check that its records are ours")
        if not self.catalog.service(entry.service).ingress:
            message = f"it calls {entry.service}, which has no public route"
            yield Finding("error", "unreachable-service", where, message, f"give {entry.service} an ingress")


def _configuration(catalog: Catalog, entry: Frontend) -> dict[str, Any]:
    policy = (
        "default-src 'self'; "
        f"connect-src 'self' https://{catalog.cluster.domain} wss://{catalog.cluster.domain}; "
        "frame-ancestors 'none'; object-src 'none'; base-uri 'self'"
    )
    headers = {"Content-Security-Policy": policy, **SECURITY_HEADERS}
    configuration: dict[str, Any] = {
        "cleanUrls": True,
        "framework": None if entry.framework == "static" else entry.framework,
        "headers": [
            {
                "headers": [{"key": key, "value": value} for key, value in sorted(headers.items())],
                "source": "/(.*)",
            }
        ],
        "regions": sorted(entry.regions),
    }
    if entry.build_command is not None:
        configuration["buildCommand"] = entry.build_command
    return configuration
