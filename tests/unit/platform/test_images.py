"""Images: what is built from what, the rules of a Dockerfile, and the comparison with an engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pytest
from packaging.requirements import Requirement

from sophia.catalog.models import Catalog, Image
from sophia.platform import PlatformSystems, Reconciler, SystemUnreachableError, build_reconcilers
from sophia.platform.bake import DIGEST_LABEL, bake_definition
from sophia.platform.dockerfile import check, parse
from sophia.platform.image_references import ImageReferences

GOOD = """\
FROM python:3.12-slim AS build
RUN true
FROM python:3.12-slim
COPY --from=build /a \\
    /b
USER 10001:10001
EXPOSE 8080
HEALTHCHECK CMD ["true"]
"""
IMAGE = Image(
    name="sophia-example",
    description="An example.",
    base="python",
    dockerfile="example",
    ports=(8080,),
    health_path="/health",
)
KNOWN = frozenset({"python:3.12-slim"})


@dataclass
class Engine:
    """An engine that holds these images."""

    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    failure: str | None = None

    def image_labels(self, reference: str) -> Mapping[str, str] | None:
        if self.failure is not None:
            raise SystemUnreachableError(self.failure)
        return self.labels.get(reference)


@pytest.fixture
def references(catalog: Catalog) -> ImageReferences:
    return ImageReferences(catalog, "registry.example.com/sophia")


def test_parse_joins_lines_and_drops_comments() -> None:
    instructions = parse("# c\nFROM a:1\nRUN x \\\n  # inside\n  && y\n")
    assert [(item.line, item.keyword, item.arguments) for item in instructions] == [
        (2, "FROM", "a:1"),
        (3, "RUN", "x && y"),
    ]


def test_good_dockerfile_has_no_findings() -> None:
    assert list(check("Dockerfile", GOOD, IMAGE, KNOWN)) == []


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("USER 10001:10001\n", "", "root-user"),
        ("USER 10001:10001", "USER root", "root-user"),
        ("USER 10001:10001", "USER 10001\nUSER 0:0", "root-user"),
        ("FROM python:3.12-slim\n", "FROM python\n", "base-not-pinned"),
        ("FROM python:3.12-slim\n", "FROM python:latest\n", "base-not-pinned"),
        ("FROM python:3.12-slim\n", "FROM alpine:3.20\n", "base-not-in-catalog"),
        ('HEALTHCHECK CMD ["true"]\n', "", "no-health-check"),
        ('HEALTHCHECK CMD ["true"]', "HEALTHCHECK NONE", "no-health-check"),
        ("EXPOSE 8080\n", "", "port-not-exposed"),
        ("RUN true", "ENV SOPHIA_API_KEY=x", "secret-in-image"),
        ("RUN true", "ENV A=1 \\\n DB_PASSWORD=x", "secret-in-image"),
        ("RUN true", "ARG REGISTRY_TOKEN", "secret-in-image"),
    ],
)
def test_each_rule_has_a_breaking_case(before: str, after: str, rule: str) -> None:
    assert before in GOOD
    broken = GOOD.replace(before, after, 1)
    assert {finding.rule for finding in check("Dockerfile", broken, IMAGE, KNOWN)} == {rule}


def test_missing_template_is_a_finding(replaced: Callable[..., Catalog], rules: Callable[..., set[str]]) -> None:
    changed = replaced("images", "sophia-mlflow", dockerfile="no-such")
    assert rules(changed, "images", "sophia-mlflow") == {"template-missing"}


def test_platform_that_the_base_lacks_is_a_finding(
    replaced: Callable[..., Catalog], rules: Callable[..., set[str]]
) -> None:
    changed = replaced("images", "python", platforms=("linux/amd64",))
    assert "platform-missing" in rules(changed, "images", "sophia-ai-base")


def test_images_of_gpu_work_are_built_for_every_gpu_host(catalog: Catalog) -> None:
    """What computes with torch may be routed to any GPU host, one of which is arm64."""
    wanted = {f"linux/{node.arch}" for node in catalog.nodes if node.gpu_count}
    assert wanted == {"linux/amd64", "linux/arm64"}
    for name in ("sophia-inference", "sophia-dagster"):
        assert set(catalog.image(name).platforms) >= wanted


@pytest.mark.skipif("+cpu" in metadata.version("torch"), reason="torch without CUDA; install it from PyPI")
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_torch_that_is_installed_brings_cuda_on_both_architectures(machine: str) -> None:
    """No marker of its requirements leaves CUDA out on one of them: the same lines install it in both images."""
    environment = {"platform_machine": machine, "platform_system": "Linux", "sys_platform": "linux", "extra": ""}
    found = [Requirement(line) for line in metadata.requires("torch") or ()]
    needed = {each.name for each in found if each.marker is None or each.marker.evaluate(environment)}
    assert any(name.startswith(("cuda-", "nvidia-")) for name in needed)


def test_standard_images_are_there(reconcilers: dict[str, Reconciler[Any]]) -> None:
    names = {image.name for image in reconcilers["images"].entries()}
    assert names >= {
        "sophia-ai-base",
        "sophia-mcp-base",
        "sophia-monitoring-base",
        "sophia-ai-main",
        "sophia-mcp-gateway",
        "sophia-mcp-github",
        "sophia-inference",
        "sophia-dagster",
    }


def test_entries_come_after_their_bases(reconcilers: dict[str, Reconciler[Any]]) -> None:
    seen: set[str] = set()
    for image in reconcilers["images"].entries():
        assert image.base is None or image.base in seen
        seen.add(image.name)


def test_a_changed_base_changes_what_is_built_on_it_and_nothing_else(
    catalog: Catalog, replaced: Callable[..., Catalog]
) -> None:
    changed = replaced("images", "sophia-mcp-base", extras=("httpx",))
    before, after = build_reconcilers(catalog)["images"], build_reconcilers(changed)["images"]
    differing = {
        image.name
        for image in after.entries()
        if after.render(image).digest != before.render(catalog.image(image.name)).digest
    }
    built_on = {image.name for image in catalog.images if image.base == "sophia-mcp-base"}
    assert differing == {"sophia-mcp-base", *built_on}


def test_every_dockerfile_is_built_the_same_way(catalog: Catalog, references: ImageReferences) -> None:
    for image in catalog.image_build_order():
        text = references.dockerfile(image)
        assert sum(item.keyword == "FROM" for item in parse(text)) >= 2
        assert "--mount=type=cache" in text
    assert "UV_COMPILE_BYTECODE=1" in references.dockerfile(catalog.image("sophia-ai-base"))


def test_bake_pushes_by_digest_for_both_platforms(catalog: Catalog, references: ImageReferences) -> None:
    image = catalog.image("sophia-ai-main")
    target = bake_definition((image,), references)["target"][image.name]
    assert target["platforms"] == ["linux/amd64", "linux/arm64"]
    assert "push-by-digest=true" in target["output"][0]
    assert target["attest"] == ["type=provenance,mode=max", "type=sbom"]
    assert target["labels"][DIGEST_LABEL] == references.content_digest(image)
    base = references.local(catalog.image("sophia-ai-base"))
    assert target["contexts"] == {base: f"docker-image://registry.example.com/sophia/{base}"}


def test_bake_of_all_links_bases_as_targets(catalog: Catalog, references: ImageReferences) -> None:
    definition = bake_definition(catalog.image_build_order(), references)
    assert list(definition["target"]["sophia-ai-main"]["contexts"].values()) == ["target:sophia-ai-base"]
    json.dumps(definition)


def test_pushed_image_goes_by_digest(catalog: Catalog) -> None:
    digest = "sha256:" + "a" * 64
    references = ImageReferences(catalog, "registry.example.com/sophia", {"sophia-ai-main": digest})
    assert references.reference("sophia-ai-main") == f"registry.example.com/sophia/sophia-ai-main@{digest}"


def test_observed_and_equal_is_nothing_to_do(catalog: Catalog, references: ImageReferences) -> None:
    image = catalog.image("sophia-ai-base")
    engine = Engine({references.reference(image.name): {DIGEST_LABEL: references.content_digest(image)}})
    reconciler = build_reconcilers(catalog, PlatformSystems(engine=engine))["images"]
    assert reconciler.plan(image).empty
    assert reconciler.observe(catalog.image("sophia-ai-main")).state == "absent"


def test_image_of_other_content_is_an_update(catalog: Catalog, references: ImageReferences) -> None:
    engine = Engine({references.reference("sophia-ai-base"): {DIGEST_LABEL: "0" * 64}})
    reconciler = build_reconcilers(catalog, PlatformSystems(engine=engine))["images"]
    plan = reconciler.plan(catalog.image("sophia-ai-base"))
    assert {change.action for change in plan.changes} == {"update"}


def test_engine_that_does_not_answer_is_unknown(catalog: Catalog) -> None:
    reconciler = build_reconcilers(catalog, PlatformSystems(engine=Engine(failure="no answer")))["images"]
    observed = reconciler.observe(catalog.image("redis"))
    assert (observed.state, observed.reason) == ("unknown", "no answer")
