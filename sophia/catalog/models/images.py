"""Container images: built from one of our Dockerfile templates, or taken from outside at a pinned tag."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from sophia.catalog.models.base import DashedName, Entry, Frozen, Port

Platform = Literal["linux/amd64", "linux/arm64"]
BOTH_PLATFORMS: tuple[Platform, ...] = ("linux/amd64", "linux/arm64")


class ScanPolicy(Frozen):
    """What an image is scanned for, and the most findings it may deploy with."""

    secrets: bool = Field(default=True, description="Look for secrets in the layers.")
    dependencies: bool = Field(default=True, description="Look for vulnerable packages.")
    vulnerabilities: bool = Field(default=True, description="Look for vulnerabilities of the system.")
    configuration: bool = Field(default=True, description="Look for bad configuration (root, ports).")
    sbom: bool = Field(default=True, description="Write a software bill of materials.")
    max_critical: int = Field(default=0, ge=0, description="Critical findings it may deploy with.")
    max_high: int | None = Field(default=None, ge=0, description="High findings allowed; null: any.")


class Image(Entry):
    """One image.

    Exactly one of `reference` (from outside) and `dockerfile` (ours) is set. An image with
    `per_service` is not built itself: each service that names it gets `<image>-<service>`, which the
    loader puts in its place with the build argument SERVICE.
    """

    name: DashedName = Field(description="Repository name without registry and tag.")
    reference: str | None = Field(default=None, description="External image with a pinned tag or digest.")
    base: str | None = Field(default=None, description="Name of the image it is built on.")
    dockerfile: str | None = Field(
        default=None,
        pattern=r"^[a-z][a-z0-9-]*$",
        description="Template in deploy/docker, without its suffix.",
    )
    per_service: bool = Field(default=False, description="Stands for one image a service.")
    platforms: tuple[Platform, ...] = Field(
        default=BOTH_PLATFORMS, min_length=1, description="Platforms in the image's manifest list."
    )
    system_packages: tuple[str, ...] = Field(default=(), description="Distribution packages to install.")
    extras: tuple[str, ...] = Field(default=(), description="Python packages to install, beside the base's.")
    build_args: dict[str, str] = Field(default_factory=dict, description="Build arguments; never secrets.")
    command: tuple[str, ...] = Field(default=(), description="Default command; empty: the base's.")
    ports: tuple[Port, ...] = Field(default=(), description="Ports it listens on.")
    health_path: str | None = Field(
        default=None, pattern=r"^/", description="HTTP path of the health check on the first port."
    )
    user: int = Field(default=10001, ge=1, description="User and group id it runs as; never root.")
    scan: ScanPolicy = Field(default_factory=ScanPolicy, description="Scans, and what may deploy.")

    @property
    def external(self) -> bool:
        """Whether it is taken from outside rather than built."""
        return self.reference is not None

    @field_validator("reference")
    @classmethod
    def _pinned(cls, value: str | None) -> str | None:
        if value is not None:
            tag = value.rpartition("/")[2].partition(":")[2]
            if not tag or tag == "latest":
                raise ValueError("needs a pinned tag or digest")
        return value

    @model_validator(mode="after")
    def _built_or_external(self) -> Image:
        if (self.reference is None) == (self.dockerfile is None):
            raise ValueError("needs either reference or dockerfile")
        if self.dockerfile is not None and self.base is None:
            raise ValueError("base is required with dockerfile")
        if self.reference is not None and (self.base is not None or self.per_service):
            raise ValueError("an external image has neither base nor per_service")
        if self.health_path is not None and not self.ports:
            raise ValueError("health_path needs a port")
        return self
