"""Reads objects from a Kubernetes API, and tells what of them differs from a manifest."""

from __future__ import annotations

import importlib
from typing import Any

from sophia.platform.manifests import Manifest
from sophia.platform.systems import SystemUnreachableError

PLURALS = {"Ingress": "ingresses", "NetworkPolicy": "networkpolicies"}
TIMEOUT_SECONDS = 20


class KubernetesApi:
    """The API behind a context of the kube configuration; connects at the first question."""

    def __init__(self, context: str) -> None:
        self._context = context
        self._client: Any = None

    def list_objects(self, api_version: str, kind: str, selector: str) -> list[dict[str, Any]]:
        """Objects of one kind in all namespaces by label; none when the API lacks the kind.

        Raises SystemUnreachableError when there is no such context, no answer, or no permission.
        """
        root = "/api/" if "/" not in api_version else "/apis/"
        path = f"{root}{api_version}/{PLURALS.get(kind, f'{kind.lower()}s')}"
        # Imported here: half a second and 40 MB that only an observed cluster is worth.
        client_module = importlib.import_module("kubernetes.client")
        try:
            answer = self._connect().call_api(
                path,
                "GET",
                query_params=[("labelSelector", selector)],
                header_params={"Accept": "application/json"},
                response_types_map={200: "object"},
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=TIMEOUT_SECONDS,
            )
        except client_module.ApiException as refused:
            if refused.status == 404:
                return []
            raise SystemUnreachableError(
                f"the Kubernetes API refused {kind}: {refused.status} {refused.reason}"
            ) from None
        except SystemUnreachableError:
            raise
        except Exception as failed:
            # urllib3, TLS and configuration errors have no common base.
            raise SystemUnreachableError(f"the Kubernetes API did not answer: {type(failed).__name__}") from failed
        items: list[dict[str, Any]] = answer.get("items") or []
        # Items of a list leave out what the list says once.
        return [{**item, "apiVersion": api_version, "kind": kind} for item in items]

    def _connect(self) -> Any:
        if self._client is None:
            config = importlib.import_module("kubernetes.config")
            try:
                self._client = config.new_client_from_config(context=self._context)
            except config.ConfigException as invalid:
                raise SystemUnreachableError(f"the Kubernetes context cannot be used: {invalid}") from None
        return self._client


def projected(desired: Any, live: Any) -> Any:
    """What `live` says about the fields that `desired` names: defaults and status filled in by others fall away.

    List elements are paired by their name where they have one, else by position.
    """
    if isinstance(desired, dict) and isinstance(live, dict):
        # Empty values are dropped by the API: that they are missing is no difference.
        return {
            key: projected(value, live[key]) if key in live else value
            for key, value in desired.items()
            if key in live or not value
        }
    if isinstance(desired, list) and isinstance(live, list):
        wanted = {item["name"]: item for item in desired if isinstance(item, dict) and "name" in item}
        if desired and len(wanted) == len(desired):
            return [
                projected(wanted[item["name"]], item) if isinstance(item, dict) and item.get("name") in wanted else item
                for item in live
            ]
        if len(desired) == len(live):
            return [projected(before, after) for before, after in zip(desired, live, strict=True)]
    return live


def identity(live: Manifest) -> Manifest:
    """The part of an object that nobody asked for which names it."""
    metadata = live["metadata"]
    named = {key: metadata[key] for key in ("name", "namespace") if key in metadata}
    return {"apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": named}
