"""Where one entry names another: that the other exists, and that the names lead nowhere in a circle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from sophia.catalog.errors import Problem, suggestion
from sophia.catalog.located import Located
from sophia.catalog.messages import field_path
from sophia.catalog.models import (
    Collection,
    Estuary,
    EstuaryCapture,
    Frontend,
    Frozen,
    Image,
    Index,
    PerProfile,
    Route,
    Service,
    Workflow,
)
from sophia.catalog.yaml_source import Loc

Reference = tuple[Loc, str, str]
"""Where it stands, the kind that it points to, the name that it gives."""

EVERYONE = "*"


def check_references(valid: Iterable[Located], names: Mapping[str, Iterable[str]]) -> Iterator[Problem]:
    """A problem for each reference to a name that its kind does not have."""
    for located in valid:
        if located.entry is None:
            continue
        for loc, kind, name in references(located.entry):
            if name in names.get(kind, ()):
                continue
            text = f'{kind} "{name}" does not exist{suggestion(name, names.get(kind, ()))}'
            if loc != (kind,):
                text = f"{field_path(loc)}: {text}"
            yield located.problem("bad-reference", text, loc)


def references(entry: Frozen) -> Iterator[Reference]:
    """Every name of another entry in `entry`."""
    match entry:
        case Route():
            yield from _one("service", "service", entry.service)
            yield from _many("nodes", "node", entry.nodes)
            yield from _many("fallback", "node", entry.fallback)
        case Image():
            yield from _one("base", "image", entry.base)
        case Service():
            yield from _one("namespace", "namespace", entry.namespace)
            yield from _one("image", "image", entry.image)
            yield from _one("route", "route", entry.route)
            yield from _many("secrets", "secret", entry.secrets)
            yield from _many("depends_on", "service", entry.depends_on)
            yield from _many("calls", "service", entry.calls)
            if entry.callers != (EVERYONE,):
                yield from _many("callers", "service", entry.callers)
            yield from _many("indexes", "index", entry.indexes)
        case Collection():
            yield from _per_profile("source", "source", entry.source)
        case Estuary():
            yield from _estuary(entry)
        case EstuaryCapture():
            yield from _one("secret", "secret", entry.secret)
            for number, binding in enumerate(entry.bindings):
                yield ("bindings", number, "collection"), "collection", binding.collection
        case Index():
            yield from _one("collection", "collection", entry.collection)
            yield from _one("model", "model", entry.model)
        case Workflow():
            for number, step in enumerate(entry.steps):
                for field, name in (("service", step.service), ("secret", step.secret)):
                    if name is not None:
                        yield ("steps", number, field), field, name
        case Frontend():
            yield from _one("service", "service", entry.service)
            yield from _many("secrets", "secret", entry.secrets)


def _estuary(entry: Estuary) -> Iterator[Reference]:
    for number, webhook in enumerate(entry.webhooks):
        yield ("webhooks", number, "token"), "secret", webhook.token
        for place, name in enumerate(webhook.collections):
            yield ("webhooks", number, "collections", place), "collection", name
    if entry.staging is not None:
        yield ("staging", "secret"), "secret", entry.staging.secret
        for place, name in enumerate(entry.staging.collections):
            yield ("staging", "collections", place), "collection", name


def _one(field: str, kind: str, name: str | None) -> Iterator[Reference]:
    if name is not None:
        yield (field,), kind, name


def _many(field: str, kind: str, names: Sequence[str]) -> Iterator[Reference]:
    for number, name in enumerate(names):
        yield (field, number), kind, name


def _per_profile(field: str, kind: str, value: PerProfile) -> Iterator[Reference]:
    if value.local is not None and value.local == value.cluster:
        yield (field,), kind, value.local
        return
    for profile, name in (("local", value.local), ("cluster", value.cluster)):
        if name is not None:
            yield (field, profile), kind, name


def check_cycles(
    entries: Mapping[str, Located], field: str, targets: Callable[[Frozen], Sequence[str]]
) -> Iterator[Problem]:
    """A problem for each circle of entries that lead to each other through `field`."""
    graph = {
        name: [target for target in targets(located.entry) if target in entries]
        for name, located in entries.items()
        if located.entry is not None
    }
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            # graphlib lists each node after the one it leads to, and closes the circle with the first.
            circle = list(reversed(error.args[1]))[:-1]
            start = circle.index(min(circle))
            ordered = [*circle[start:], *circle[:start]]
            path = " → ".join([*ordered, ordered[0]])
            yield entries[ordered[0]].problem("cycle", f"{field}: goes in a circle: {path}", (field,))
            graph = {name: leads for name, leads in graph.items() if name not in circle}
        else:
            return
