"""The platform's own rules for manifests, each with a case that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sophia.catalog.models import Catalog
from sophia.platform import Reconciler
from sophia.platform.kubernetes_checks import policy_findings, schema_findings
from sophia.platform.text import from_yaml_stream


@pytest.fixture
def deployment(catalog: Catalog, reconcilers: dict[str, Reconciler[Any]]) -> dict[str, Any]:
    files = reconcilers["services"].render(catalog.service("inference_warm")).files
    (document,) = from_yaml_stream(files["services/inference-warm/deployment.yaml"])
    return document


BREAKAGES: list[tuple[str, Callable[[dict[str, Any], dict[str, Any]], object]]] = [
    ("root-user", lambda pod, box: pod["securityContext"].update(runAsNonRoot=False)),
    ("root-user", lambda pod, box: pod["securityContext"].update(runAsUser=0)),
    ("no-seccomp", lambda pod, box: pod["securityContext"].pop("seccompProfile")),
    ("host-namespace", lambda pod, box: pod.update(hostNetwork=True)),
    ("privileged", lambda pod, box: box["securityContext"].update(allowPrivilegeEscalation=True)),
    ("privileged", lambda pod, box: box["securityContext"].update(privileged=True)),
    ("capabilities", lambda pod, box: box["securityContext"].pop("capabilities")),
    ("writable-root", lambda pod, box: box["securityContext"].update(readOnlyRootFilesystem=False)),
    ("no-resources", lambda pod, box: box["resources"]["limits"].pop("memory")),
    ("no-resources", lambda pod, box: box["resources"]["requests"].pop("cpu")),
    ("gpu-runtime", lambda pod, box: pod.pop("runtimeClassName")),
    ("image-not-pinned", lambda pod, box: box.update(image="registry.example.com/a:latest")),
    ("image-not-pinned", lambda pod, box: box.update(image="registry.example.com/a")),
    ("no-readiness", lambda pod, box: box.pop("readinessProbe")),
    ("no-liveness", lambda pod, box: [box.pop("livenessProbe"), box.pop("startupProbe")]),
    ("secret-value", lambda pod, box: box["env"].append({"name": "DB_PASSWORD", "value": "x"})),
]


@pytest.mark.parametrize(("rule", "breakage"), BREAKAGES)
def test_each_rule_of_a_pod_has_a_breaking_case(
    deployment: dict[str, Any], rule: str, breakage: Callable[[dict[str, Any], dict[str, Any]], object]
) -> None:
    assert list(policy_findings("d", deployment)) == []
    pod = deployment["spec"]["template"]["spec"]
    breakage(pod, pod["containers"][0])
    assert {finding.rule for finding in policy_findings("d", deployment)} == {rule}


@pytest.mark.parametrize(
    ("document", "rule"),
    [
        ({"kind": "ConfigMap", "data": {"API_TOKEN": "x"}}, "secret-value"),
        ({"kind": "Secret", "stringData": {"a": "x"}}, "secret-value"),
        ({"kind": "Ingress", "metadata": {"annotations": {"nginx.org/limit-req-rate": "1r/s"}}, "spec": {}}, "no-tls"),
        (
            {
                "kind": "Ingress",
                "metadata": {"annotations": {"nginx.org/mergeable-ingress-type": "minion"}},
                "spec": {},
            },
            "no-rate-limit",
        ),
    ],
)
def test_each_rule_of_other_objects_has_a_breaking_case(document: dict[str, Any], rule: str) -> None:
    assert [finding.rule for finding in policy_findings("d", document)] == [rule]


def test_schema_breach_names_the_place(deployment: dict[str, Any]) -> None:
    deployment["spec"]["replica"] = 1
    (finding,) = schema_findings("d", deployment, ("1.30",))
    assert (finding.rule, finding.severity) == ("bad-schema", "error")
    assert "spec: " in finding.message
