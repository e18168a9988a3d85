"""Which outside systems there are to look at, and the questions that may be asked of them; all read-only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sophia.errors import ConfigurationError
from sophia.settings import Settings

if TYPE_CHECKING:
    from sophia.estuary.catalog.flowctl import Flowctl

DEFAULT_REGISTRY = "registry.example.com/sophia"


class SystemUnreachableError(Exception):
    """An outside system did not answer, or refused; the message is what a plan gives as the reason."""


class ContainerEngine(Protocol):
    """A container engine, read-only."""

    def image_labels(self, reference: str) -> Mapping[str, str] | None:
        """Labels of a local image, None when it is not there; raises SystemUnreachableError."""
        ...


class KubernetesReader(Protocol):
    """A Kubernetes API, read-only."""

    def list_objects(self, api_version: str, kind: str, selector: str) -> list[dict[str, Any]]:
        """Objects of one kind in all namespaces by label; none when the API lacks the kind.

        Raises SystemUnreachableError.
        """
        ...


@dataclass(frozen=True)
class PlatformSystems:
    """Outside systems by address. All None is plan mode: everything is rendered and nothing is observed."""

    docker_host: str | None = None
    kube_context: str | None = None
    n8n_url: str | None = None
    n8n_api_key: str | None = field(default=None, repr=False)
    vercel_token: str | None = field(default=None, repr=False)
    registry: str = DEFAULT_REGISTRY
    image_digests: Mapping[str, str] = field(default_factory=dict)
    """Digests (`sha256:…`) of our images as they were pushed, by name; the others go by their content tag."""
    environ: Mapping[str, str] | None = field(default=None, repr=False)
    """The environment whose variables are compared with the secrets; only names ever leave it."""
    flowctl: Flowctl | None = None
    """Estuary's command with a token."""
    engine: ContainerEngine | None = field(default=None, repr=False)
    """Instead of the engine at `docker_host`."""
    kubernetes: KubernetesReader | None = field(default=None, repr=False)
    """Instead of the API at `kube_context`."""


def systems_of(settings: Settings, environ: Mapping[str, str]) -> PlatformSystems:
    """The outside systems that the settings name; `environ` is where set secrets are looked for."""
    return PlatformSystems(
        docker_host=settings.docker_host,
        kube_context=settings.kube_context,
        n8n_url=settings.n8n_url,
        n8n_api_key=settings.n8n_api_key.get_secret_value() if settings.n8n_api_key else None,
        vercel_token=settings.vercel_token.get_secret_value() if settings.vercel_token else None,
        environ=environ,
        flowctl=_flowctl(settings, environ),
    )


def _flowctl(settings: Settings, environ: Mapping[str, str]) -> Flowctl | None:
    from sophia.estuary.catalog.flowctl import flowctl_of

    try:
        return flowctl_of(settings, environ)
    except ConfigurationError:
        return None
