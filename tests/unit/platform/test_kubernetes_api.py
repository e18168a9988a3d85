"""The real client against a server that answers like an API: paths, absence, refusal, silence."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from sophia.platform import SystemUnreachableError
from sophia.platform.kubernetes_api import KubernetesApi, projected


class Handler(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        status = 404 if "keda" in self.path else 403 if "roles" in self.path else 200
        body = json.dumps({"items": [{"metadata": {"name": "a"}}]} if status == 200 else {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    Handler.asked = []
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    configuration = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(configuration))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    yield KubernetesApi("test")
    server.shutdown()
    server.server_close()


def test_paths_and_kinds(api: KubernetesApi) -> None:
    found = api.list_objects("networking.k8s.io/v1", "NetworkPolicy", "a=b")
    assert found == [{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "a"}}]
    api.list_objects("v1", "Service", "a=b")
    assert Handler.asked == [
        "/apis/networking.k8s.io/v1/networkpolicies?labelSelector=a%3Db",
        "/api/v1/services?labelSelector=a%3Db",
    ]


def test_kind_that_the_api_lacks_has_no_objects(api: KubernetesApi) -> None:
    assert api.list_objects("keda.sh/v1alpha1", "ScaledObject", "a=b") == []


def test_refusal_is_said(api: KubernetesApi) -> None:
    with pytest.raises(SystemUnreachableError, match="refused Role: 403"):
        api.list_objects("rbac.authorization.k8s.io/v1", "Role", "a=b")


def test_unknown_context_is_said(api: KubernetesApi) -> None:
    with pytest.raises(SystemUnreachableError, match="context cannot be used"):
        KubernetesApi("no-such").list_objects("v1", "Service", "a=b")


def test_projection_drops_what_others_filled_in() -> None:
    desired = {"a": 1, "empty": [], "list": [{"name": "x", "v": 1}], "plain": [{"p": 1}]}
    live = {"a": 2, "b": 3, "list": [{"name": "x", "v": 1, "w": 2}], "plain": [{"p": 1, "q": 2}]}
    assert projected(desired, live) == {"a": 2, "empty": [], "list": [{"name": "x", "v": 1}], "plain": [{"p": 1}]}


def test_projection_keeps_what_was_added_to_a_list() -> None:
    assert projected([{"name": "x"}], [{"name": "x", "v": 1}, {"name": "y"}]) == [{"name": "x"}, {"name": "y"}]
    assert projected(["a"], ["a", "b"]) == ["a", "b"]


def test_projection_shows_what_is_missing() -> None:
    assert projected({"a": 1, "b": 2}, {"a": 1}) == {"a": 1}
