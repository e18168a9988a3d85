"""What surrounds the services: secrets (names, never values), n8n workflows, Vercel frontends."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sophia.catalog.models.base import Cron, Entry, Environment, EnvName, Frozen

Rotation = Literal["database-weekly-two-secret", "credential-30", "standard-90", "manual"]
Provider = Literal["github", "pulumi_esc", "kubernetes"]

ROTATION_DAYS: dict[Rotation, int] = {
    "database-weekly-two-secret": 7,
    "credential-30": 30,
    "standard-90": 90,
    "manual": 90,
}
"""Days after which a secret of the class is due; a manual one is only reported."""


class Secret(Entry):
    """A secret by name; its value lives in the provider chain and nowhere in the repository."""

    env: EnvName = Field(description="Variable under which services read it.")
    rotation: Rotation = Field(description="How, and how often, it is replaced.")
    environments: tuple[Environment, ...] = Field(
        default=("development", "staging", "production"),
        min_length=1,
        description="Environments that have a value of their own.",
    )
    providers: tuple[Provider, ...] = Field(
        default=("github", "pulumi_esc", "kubernetes"),
        min_length=1,
        description="Chain it travels along, from where it is kept to where it is read.",
    )
    required: bool = Field(default=True, description="Whether nothing starts without it.")
    pattern: str | None = Field(default=None, description="Regular expression that a value must match.")
    min_length: int = Field(default=8, ge=1, description="Shortest value that can be real.")

    @property
    def rotation_days(self) -> int:
        """Days after which it is due."""
        return ROTATION_DAYS[self.rotation]


class Trigger(Frozen):
    """What starts a workflow: a call of a webhook path, or a schedule."""

    kind: Literal["webhook", "schedule"] = Field(description="Sort of trigger.")
    path: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9/-]*$", description="Webhook path below /webhook/.")
    cron: Cron | None = Field(default=None, description="When, for a schedule.")

    @model_validator(mode="after")
    def _complete(self) -> Trigger:
        if (self.path is not None) != (self.kind == "webhook"):
            raise ValueError("path goes with webhook, and only with it")
        if (self.cron is not None) != (self.kind == "schedule"):
            raise ValueError("cron goes with schedule, and only with it")
        return self


class Step(Frozen):
    """One node of a workflow."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="Unique within the workflow.")
    action: Literal["http", "dagster_job", "condition", "wait", "slack", "respond", "mcp"] = Field(
        description="What it does."
    )
    service: str | None = Field(default=None, description="Service it calls, for http and mcp.")
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = Field(
        default="POST", description="HTTP method, for http."
    )
    path: str | None = Field(default=None, pattern=r"^/", description="HTTP path, for http.")
    job: str | None = Field(default=None, description="Dagster job, for dagster_job.")
    tool: str | None = Field(default=None, description="Tool of the MCP server, for mcp.")
    expression: str | None = Field(default=None, description="n8n expression: condition or message text.")
    seconds: int | None = Field(default=None, ge=1, description="How long, for wait.")
    secret: str | None = Field(default=None, description="Secret that authenticates the call.")
    retries: int = Field(default=2, ge=0, description="Attempts after the first.")
    next: tuple[str, ...] = Field(default=(), description="Steps that follow (for a condition: when true).")
    otherwise: tuple[str, ...] = Field(
        default=(), description="Steps that follow a failure (for a condition: when false)."
    )

    @model_validator(mode="after")
    def _complete(self) -> Step:
        needed = {
            "http": ("service", "path"),
            "dagster_job": ("job",),
            "condition": ("expression",),
            "wait": ("seconds",),
            "slack": ("expression", "secret"),
            "respond": (),
            "mcp": ("service", "tool"),
        }[self.action]
        missing = [field for field in needed if getattr(self, field) is None]
        if missing:
            raise ValueError(f"{' and '.join(missing)} is required for {self.action}")
        return self


class Workflow(Entry):
    """An n8n workflow, described without n8n's own format."""

    active: bool = Field(default=True, description="Whether n8n runs it.")
    trigger: Trigger = Field(description="What starts it.")
    steps: tuple[Step, ...] = Field(min_length=1, description="Its nodes; the first follows the trigger.")
    timeout_seconds: int = Field(default=600, ge=1, description="Longest run.")

    @model_validator(mode="after")
    def _connected(self) -> Workflow:
        names = [step.name for step in self.steps]
        if len(set(names)) != len(names):
            raise ValueError("steps carry one name twice")
        reached = {names[0]}
        for step in self.steps:
            for target in (*step.next, *step.otherwise):
                if target not in names:
                    raise ValueError(f'step "{step.name}" leads to "{target}", which does not exist')
                reached.add(target)
        lonely = [name for name in names if name not in reached]
        if lonely:
            raise ValueError(f'step "{lonely[0]}" is not connected')
        return self

    @property
    def services(self) -> tuple[str, ...]:
        """Services that its steps call, each once."""
        return tuple(dict.fromkeys(step.service for step in self.steps if step.service is not None))

    @property
    def secrets(self) -> tuple[str, ...]:
        """Secrets that its steps use, each once."""
        return tuple(dict.fromkeys(step.secret for step in self.steps if step.secret is not None))


class Frontend(Entry):
    """A Vercel project."""

    project: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="Project name at Vercel.")
    framework: Literal["nextjs", "vite", "static"] = Field(default="nextjs", description="Build preset.")
    root: str = Field(description="Folder of its sources.")
    build_command: str | None = Field(default=None, description="Build command; null: the framework's.")
    node_version: str = Field(default="22.x", description="Node version it builds with.")
    regions: tuple[str, ...] = Field(default=("iad1",), min_length=1, description="Where functions run.")
    domains: tuple[str, ...] = Field(
        min_length=1, description="Host names; DNS records at the registrar point them to the project."
    )
    dns: Literal["namecheap"] = Field(default="namecheap", description="Who serves the domains' records.")
    service: str = Field(description="Service that it calls.")
    env: dict[str, str] = Field(default_factory=dict, description="Plain build and run variables.")
    secrets: tuple[str, ...] = Field(default=(), description="Secrets that the project gets, by name.")
    load_target_ms: int = Field(default=800, ge=1, description="95th percentile of the first load.")
