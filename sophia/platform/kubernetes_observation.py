"""What is in the cluster of the objects of one owner, in the files that rendering would give them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from sophia.platform.kubernetes_api import KubernetesApi, identity, projected
from sophia.platform.manifests import MANAGED_BY, NAME, PLATFORM, Manifest
from sophia.platform.reconcile import Observed, Rendered
from sophia.platform.systems import KubernetesReader, PlatformSystems, SystemUnreachableError
from sophia.platform.text import from_yaml_stream, to_yaml

NOT_CONFIGURED = "no Kubernetes context is configured (set SOPHIA_KUBE_CONTEXT)"


def reader_of(systems: PlatformSystems) -> KubernetesReader | None:
    """The reader that is configured, if any."""
    if systems.kubernetes is not None:
        return systems.kubernetes
    return None if systems.kube_context is None else KubernetesApi(systems.kube_context)


def observe_objects(
    reader: KubernetesReader,
    owner: str,
    kinds: Iterable[tuple[str, str]],
    rendered: Rendered,
    path_of: Callable[[Manifest], str],
) -> Observed:
    """The live objects with the name label `owner`, reduced to the fields that `rendered` names.

    An object that is not rendered any more appears by its identity, so that the plan deletes it.
    """
    desired = {path: from_yaml_stream(text)[0] for path, text in rendered.files.items()}
    label = f"{MANAGED_BY}={PLATFORM},{NAME}={owner}"
    files: dict[str, str] = {}
    try:
        for api_version, kind in kinds:
            for live in reader.list_objects(api_version, kind, label):
                path = path_of(live)
                files[path] = to_yaml(_reduced(desired, path, live))
    except SystemUnreachableError as unreachable:
        return Observed.unknown(str(unreachable))
    if not files:
        return Observed("absent", f"the cluster has no objects of {owner}")
    return Observed("present", f"the cluster has {len(files)} objects of {owner}", files=files)


def _reduced(desired: Mapping[str, Manifest], path: str, live: Manifest) -> Manifest:
    if path not in desired:
        return identity(live)
    reduced: Manifest = projected(desired[path], live)
    return reduced
