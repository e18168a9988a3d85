"""The catalog in `deploy/catalog` holds what the platform is made of."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from pathlib import Path

import pytest

from sophia.catalog import Catalog, default_path, load

MCP_SERVERS = {
    "ai_intelligence": {
        "sophia_ai_intelligence",
        "sophia_business_intelligence",
        "sophia_data_intelligence",
        "ai_memory",
    },
    "infrastructure": {"sophia_infrastructure", "docker", "pulumi", "lambda_labs_cli"},
    "integrations": {"github", "slack", "notion", "asana", "hubspot", "salesforce"},
    "data": {"postgres", "snowflake", "snowflake_admin", "snowflake_cortex"},
    "development": {"codacy", "playwright", "figma_context"},
}
# Blocks that documentation may use (RFC 5737), and what a server listens on.
HARMLESS = [ipaddress.ip_network(block) for block in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load(default_path())


def test_the_default_path_is_this_checkouts_catalog() -> None:
    assert default_path() == Path(__file__).resolve().parents[3] / "deploy" / "catalog"


def test_the_five_nodes(catalog: Catalog) -> None:
    assert {node.name: (node.gpu, node.gpu_memory_gb, node.region, node.price_usd_hour) for node in catalog.nodes} == {
        "sophia-ai-core": ("GH200", 96, "us-east-3", 1.85),
        "sophia-mcp-orchestrator": ("A6000", 48, "us-south-1", 0.65),
        "sophia-data-pipeline": ("A100", 40, "us-south-1", 1.10),
        "sophia-production": ("RTX 6000", 48, "us-south-1", 0.80),
        "sophia-development": ("A10", 24, "us-west-1", 0.75),
    }
    assert [node.name for node in catalog.nodes if node.control_plane] == ["sophia-ai-core"]
    assert [node.name for node in catalog.nodes if node.arch == "arm64"] == ["sophia-ai-core"]
    assert [node.name for node in catalog.nodes if node.environment != "production"] == ["sophia-development"]


def test_the_cluster_policy(catalog: Catalog) -> None:
    scaling = catalog.cluster.scaling
    assert (scaling.min_nodes, scaling.max_nodes) == (2, 10)
    assert (scaling.down_gpu_percent, scaling.target_gpu_percent, scaling.up_gpu_percent) == (30, 75, 85)
    assert catalog.cluster.gpu_quota == 4
    assert sum(namespace.gpu_quota for namespace in catalog.cluster.namespaces) <= 4


def test_routes_follow_the_platforms_table(catalog: Catalog) -> None:
    assert catalog.route("embedding_high_priority").service == "inference_warm"
    assert catalog.service("inference_warm").scaling.min >= 1
    assert catalog.route("embedding").nodes == ("sophia-ai-core",)
    assert catalog.route("batch").nodes == ("sophia-data-pipeline",)
    assert catalog.route("realtime").nodes == ("sophia-production",)
    assert catalog.route("mcp").nodes == ("sophia-mcp-orchestrator",)
    production = {node.name for node in catalog.nodes if node.environment == "production"}
    for route in catalog.routes:
        assert route.workload == "development" or {*route.nodes, *route.fallback} <= production


def test_latency_bound_routes_stay_in_the_region_of_the_data(catalog: Catalog) -> None:
    for route in catalog.routes:
        if route.max_latency_ms is not None:
            assert {catalog.node(name).region for name in (*route.nodes, *route.fallback)} == {"us-south-1"}


def test_at_least_25_mcp_servers_in_five_groups(catalog: Catalog) -> None:
    by_group: dict[str, set[str]] = {}
    for server in catalog.mcp_servers:
        assert server.group is not None
        by_group.setdefault(server.group, set()).add(server.name)
    assert len(catalog.mcp_servers) >= 25
    assert by_group.keys() == MCP_SERVERS.keys()
    for group, named in MCP_SERVERS.items():
        assert named <= by_group[group]


def test_each_mcp_server_has_an_image_of_its_own_from_one_template(catalog: Catalog) -> None:
    for server in catalog.mcp_servers:
        image = catalog.image(f"sophia-mcp-{server.resource_name}")
        assert server.image == image.name
        assert (image.base, image.dockerfile) == ("sophia-mcp-base", "mcp-server")
        assert image.build_args == {"SERVICE": server.name}
        assert image.owners == server.owners
    assert "sophia-mcp" not in {image.name for image in catalog.images}


def test_the_standard_images_on_both_platforms(catalog: Catalog) -> None:
    standard = {
        "sophia-ai-base",
        "sophia-mcp-base",
        "sophia-monitoring-base",
        "sophia-ai-main",
        "sophia-mcp-gateway",
        "sophia-inference",
        "sophia-dagster",
    }
    assert standard <= {image.name for image in catalog.images}
    for image in catalog.image_build_order():
        assert image.platforms == ("linux/amd64", "linux/arm64")
        assert image.scan.max_critical == 0


def test_images_are_built_after_their_base(catalog: Catalog) -> None:
    catalog = Catalog(images=catalog.images[::-1])
    order = [image.name for image in catalog.image_build_order()]
    assert len(order) == len(set(order)) == sum(not image.external for image in catalog.images)
    for image in catalog.image_build_order():
        assert image.base is not None
        assert catalog.image(image.base).external or order.index(image.base) < order.index(image.name)


def test_every_image_is_used(catalog: Catalog) -> None:
    used = {service.image for service in catalog.services} | {image.base for image in catalog.images}
    assert {image.name for image in catalog.images} <= used


def test_each_service_listens_where_its_image_does(catalog: Catalog) -> None:
    for name, port in {"core_api": 8000, "mcp_gateway": 8090, "n8n_main": 5678, "postgresql": 5432}.items():
        assert catalog.service(name).ports[0].number == port
    for name, port in {"redis": 6379, "prometheus": 9090, "grafana": 3000, "jaeger": 16686, "mlflow": 5000}.items():
        assert catalog.service(name).ports[0].number == port


def test_services_scale_as_the_platform_asks(catalog: Catalog) -> None:
    def scaling(name: str) -> tuple[int, int]:
        return catalog.service(name).scaling.min, catalog.service(name).scaling.max

    assert scaling("n8n_main") == (2, 2)
    assert scaling("n8n_worker") == (3, 20)
    assert scaling("inference") == (0, 100)
    assert catalog.service("dagster_daemon").scaling.max == 1


def test_inference_functions_keep_their_targets(catalog: Catalog) -> None:
    targets = {endpoint.path: endpoint.latency_target_ms for endpoint in catalog.service("inference").endpoints}
    assert targets == {"/embed": 50, "/analyze": 100, "/classify": 150, "/generate": 200, "/summarize": 500}


def test_public_routes(catalog: Catalog) -> None:
    routes = {ingress.path: service.name for service in catalog.services for ingress in service.ingress}
    assert routes["/api"] == routes["/health"] == "core_api"
    assert (routes["/mcp"], routes["/monitoring"]) == ("mcp_gateway", "grafana")


def test_network_flows_follow_from_the_catalog(catalog: Catalog) -> None:
    assert [caller.name for caller in catalog.callers_of("github")] == ["mcp_gateway", "prometheus"]
    assert {caller.name for caller in catalog.callers_of("core_api")} >= {"nginx_ingress", "n8n_worker"}
    assert len(catalog.callers_of("jaeger")) == len(catalog.services) - 1
    for service in catalog.services:
        for callee in catalog.callees_of(service.name):
            assert service in catalog.callers_of(callee.name)


def test_gpu_pods_fit_the_nodes_of_their_route(catalog: Catalog) -> None:
    for service in catalog.services:
        if service.resources.gpu:
            assert service.route is not None
            assert catalog.route(service.route).gpu == service.resources.gpu
            namespaces = {namespace.name: namespace for namespace in catalog.cluster.namespaces}
            assert namespaces[service.namespace].gpu_quota >= service.resources.gpu


def test_data(catalog: Catalog) -> None:
    assert [source.name for source in catalog.sources] == ["sample", "app", "snowflake", "estuary"]
    assert {collection.name for collection in catalog.collections} == {
        "documents",
        "conversations",
        "business_metrics",
        "realtime_data",
        "vector_updates",
    }
    assert catalog.collection("realtime_data").key == ("timestamp", "source")
    assert catalog.collection("realtime_data").source.for_profile("local") is None
    assert {index.name for index in catalog.indexes_of("conversations")} == {
        "memory",
        "conversation_search",
        "conversations_pinecone",
    }
    assert catalog.index("conversation_search").store.for_profile("local") is None
    assert catalog.index("conversation_search").required_filter == "user_id"
    assert catalog.index("documents").template_columns == ("title", "body")


def test_every_variable_that_a_source_or_model_reads_is_a_secret(catalog: Catalog) -> None:
    known = {secret.env for secret in catalog.secrets}
    wanted = {source.url_env for source in catalog.sources} | {model.key_env for model in catalog.models}
    assert wanted - {None} <= known
    assert catalog.cluster.k3s.token_env in known


def test_secrets_have_rotation_classes_and_mostly_consumers(catalog: Catalog) -> None:
    assert len(catalog.secrets) >= 40
    assert set(Counter(secret.rotation for secret in catalog.secrets)) == {
        "database-weekly-two-secret",
        "credential-30",
        "standard-90",
        "manual",
    }
    assert [entry.name for entry in catalog.consumers_of("slack_webhook_url")] == [
        "n8n_worker",
        "alertmanager",
        "deployment_pipeline",
        "data_sync",
    ]
    # Read by provisioning and CI rather than by a service.
    outside = {"k3s_token", "wireguard_private_key", "ssh_private_key", "image_signing_key", "github_webhook_secret"}
    assert {secret.name for secret in catalog.secrets if not catalog.consumers_of(secret.name)} == outside


def test_workflows_and_frontends(catalog: Catalog) -> None:
    assert catalog.workflow("deployment_pipeline").trigger.kind == "webhook"
    assert catalog.workflow("data_sync").trigger.cron == "*/5 * * * *"
    assert len(catalog.frontends) == 4
    for frontend in catalog.frontends:
        assert all(domain.endswith(".example.com") for domain in frontend.domains)


def test_no_address_and_no_secret_value_in_any_file() -> None:
    for file in default_path().iterdir():
        text = file.read_text(encoding="utf-8")
        for found in re.findall(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])", text):
            address = ipaddress.ip_address(found)
            assert address.is_unspecified or any(address in block for block in HARMLESS), f"{file.name}: {found}"
        # Long runs of mixed letters and digits are what keys look like.
        for word in re.findall(r"[A-Za-z0-9+/_-]{32,}", text):
            assert not (re.search(r"\d", word) and re.search(r"[A-Z]", word) and re.search(r"[a-z]", word)), word
        assert not re.search(r"(?i)://[^/\s\"']+:[^/\s\"'@]+@", text), f"{file.name}: credentials in a URL"
        for host in re.findall(r"https?://([a-z0-9.-]+)", text):
            assert host.endswith("example.com") or file.suffix == ".json", f"{file.name}: {host}"
