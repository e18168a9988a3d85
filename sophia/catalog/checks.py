"""What no entry can know alone: unique names, references, and what two entries imply together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar, get_args

from sophia.catalog.errors import Problem
from sophia.catalog.expansion import service_image_name
from sophia.catalog.located import Located
from sophia.catalog.models import (
    Collection,
    EmbeddingModel,
    Entry,
    Estuary,
    EstuaryCapture,
    Frozen,
    GraphKind,
    Image,
    Index,
    Node,
    Profile,
    Route,
    Secret,
    Service,
    Source,
)
from sophia.catalog.references import check_cycles, check_references

EntryT = TypeVar("EntryT", bound=Entry)
Known = dict[str, dict[str, Located]]
"""Kind, then name: the first entry of that name, valid or not."""

# Of pgvector's index type hnsw, by what it holds of a vector.
MOST_DIMENSIONS: dict[GraphKind, int] = {"full": 2_000, "half": 4_000, "binary": 64_000}
VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


def check(entries: Sequence[Located]) -> list[Problem]:
    """Problems between the entries; an invalid entry counts by its name, so that it is named once."""
    known: Known = {}
    problems: list[Problem] = []
    valid: list[Located] = []
    for located in entries:
        if located.name is not None:
            first = known.setdefault(located.section.kind, {}).setdefault(located.name, located)
            if first is not located:
                place = f"{first.path}:{first.line(('name',))}"
                text = f"name is already taken at {place}"
                problems.append(located.problem("duplicate-name", text, ("name",)))
        if located.entry is not None:
            valid.append(located)
    names: dict[str, set[str]] = {kind: set(entries) for kind, entries in known.items()}
    names["namespace"] = set(_namespaces(entries))
    problems += check_references(valid, names)
    problems += check_cycles(known.get("image", {}), "base", _base)
    problems += check_cycles(known.get("service", {}), "depends_on", _depends_on)
    problems += _shared_variables(valid)
    problems += _shared_paths(valid)
    problems += _captured_twice(valid)
    problems += _shared_estuary_names(valid)
    for located in valid:
        match located.entry:
            case Service():
                problems += _service(located, located.entry, known)
            case Index():
                problems += _index(located, located.entry, known)
            case Route():
                problems += _route(located, located.entry, known)
            case Collection():
                problems += _collection(located, located.entry, known)
            case EstuaryCapture():
                problems += _capture(located, located.entry, known)
            case Estuary():
                problems += _estuary(located, located.entry, known)
    return problems


def _namespaces(entries: Iterable[Located]) -> Iterator[str]:
    for located in entries:
        if located.section.kind == "cluster" and isinstance(located.data.get("namespaces"), list):
            for namespace in located.data["namespaces"]:
                if isinstance(namespace, dict):
                    yield str(namespace.get("name"))


def _base(entry: Frozen) -> tuple[str, ...]:
    return (entry.base,) if isinstance(entry, Image) and entry.base is not None else ()


def _depends_on(entry: Frozen) -> tuple[str, ...]:
    return entry.depends_on if isinstance(entry, Service) else ()


def _get(known: Known, kind: str, name: str, model: type[EntryT]) -> EntryT | None:
    located = known.get(kind, {}).get(name)
    return located.entry if located is not None and isinstance(located.entry, model) else None


def _shared_variables(valid: Iterable[Located]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for located in valid:
        if isinstance(located.entry, Secret):
            owner = first.setdefault(located.entry.env, located.entry.name)
            if owner != located.entry.name:
                text = f'env: {located.entry.env} is already the variable of secret "{owner}"'
                yield located.problem("conflict", text, ("env",))


def _shared_paths(valid: Iterable[Located]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for located in valid:
        if not isinstance(located.entry, Service):
            continue
        for number, ingress in enumerate(located.entry.ingress):
            owner = first.setdefault(ingress.path, located.entry.name)
            if owner != located.entry.name:
                text = f'ingress[{number}].path: {ingress.path} already leads to service "{owner}"'
                yield located.problem("conflict", text, ("ingress", number, "path"))


def _service(located: Located, service: Service, known: Known) -> Iterator[Problem]:
    image = _get(known, "image", service.image, Image)
    if image is not None and image.per_service:
        name = service_image_name(image.name, service.name)
        if name in known["image"]:
            text = f'image: its own image would be "{name}", which images.yaml has already'
            yield located.problem("conflict", text, ("image",))
    if service.name in service.calls:
        yield located.problem("conflict", "calls: it names itself", ("calls",))
    secrets = [_get(known, "secret", name, Secret) for name in service.secrets]
    if None in secrets:
        # Which variable is missing cannot be said before every secret is known.
        return
    held = {secret.env for secret in secrets if secret is not None}
    for key, value in service.env.items():
        for variable in VARIABLE.findall(value):
            if variable not in held and variable not in service.env:
                text = f"env.{key}: $({variable}) is not the variable of one of its secrets"
                yield located.problem("bad-reference", text, ("env", key))


def _index(located: Located, index: Index, known: Known) -> Iterator[Problem]:
    model = _get(known, "model", index.model, EmbeddingModel)
    if model is not None and index.chunk_tokens > model.max_tokens:
        text = f'chunk_tokens: {index.chunk_tokens} is more than model "{model.name}" reads ({model.max_tokens})'
        yield located.problem("conflict", text, ("chunk_tokens",))
    if model is not None and "pgvector" in (index.store.local, index.store.cluster):
        most = MOST_DIMENSIONS[index.graph]
        if model.dimension > most:
            text = (
                f'graph: a "{index.graph}" graph of pgvector holds at most {most:,} dimensions, and model '
                f'"{model.name}" has {model.dimension:,}; use "half" (up to {MOST_DIMENSIONS["half"]:,}) or "binary"'
            )
            yield located.problem("conflict", text, ("graph",))
    collection = _get(known, "collection", index.collection, Collection)
    if collection is None:
        return
    profiles: tuple[Profile, ...] = get_args(Profile)
    for profile in profiles:
        if index.store.for_profile(profile) and not collection.source.for_profile(profile):
            text = f'store: collection "{collection.name}" has no source in the {profile} profile'
            yield located.problem("conflict", text, ("store", profile))


def _fed_by_estuary(collection: Collection, known: Known) -> bool:
    sources = (
        _get(known, "source", name, Source) for name in (collection.source.local, collection.source.cluster) if name
    )
    return any(source is not None and source.kind == "estuary" for source in sources)


def _collection(located: Located, collection: Collection, known: Known) -> Iterator[Problem]:
    if _fed_by_estuary(collection, known) and not collection.key:
        text = "key: is required of a collection that comes from Estuary: its documents do not name theirs"
        yield located.problem("conflict", text, ("key",))
    for name in collection.key:
        if collection.columns and name not in collection.columns:
            yield located.problem("conflict", f'columns: has no "{name}", which is part of the key', ("columns",))


def _captured_twice(valid: Iterable[Located]) -> Iterator[Problem]:
    owner: dict[str, str] = {}
    for located in valid:
        if not isinstance(located.entry, EstuaryCapture):
            continue
        for number, binding in enumerate(located.entry.bindings):
            first = owner.setdefault(binding.collection, located.entry.name)
            if first != located.entry.name:
                # Clocks of two captures are not comparable: an older row could win.
                text = f'bindings[{number}].collection: capture "{first}" writes "{binding.collection}" already'
                yield located.problem("conflict", text, ("bindings", number, "collection"))


def _shared_estuary_names(valid: Iterable[Located]) -> Iterator[Problem]:
    """A delivery names its collection by that alone."""
    owner: dict[str, str] = {}
    for located in valid:
        if isinstance(located.entry, Collection):
            first = owner.setdefault(located.entry.estuary, located.entry.name)
            if first != located.entry.name:
                text = f'estuary: {located.entry.estuary} is already the name of collection "{first}"'
                yield located.problem("conflict", text, ("estuary",))


def _capture(located: Located, capture: EstuaryCapture, known: Known) -> Iterator[Problem]:
    for number, binding in enumerate(capture.bindings):
        collection = _get(known, "collection", binding.collection, Collection)
        if collection is None:
            continue
        loc = ("bindings", number, "collection")
        where = f"bindings[{number}].collection"
        if binding.table is None and collection.table is None:
            text = f'{where}: neither it nor collection "{collection.name}" names a table'
            yield located.problem("conflict", text, loc)
        if not collection.key:
            text = f'{where}: collection "{collection.name}" has no key; name its columns there'
            yield located.problem("conflict", text, loc)
        if capture.connector == "source-snowflake" and _fed_by_estuary(collection, known):
            lower = [name for name in collection.key if name != name.upper()]
            if lower:
                text = f'{where}: Snowflake sends "{lower[0].upper()}", and the key of its documents is "{lower[0]}"'
                yield located.problem("conflict", text, loc)


def _estuary(located: Located, estuary: Estuary, known: Known) -> Iterator[Problem]:
    prefix = f"{estuary.prefixes.production}/"
    for other in known.get("collection", {}).values():
        collection = other.entry
        if isinstance(collection, Collection) and not collection.estuary.startswith(prefix):
            text = f'prefixes.production: collection "{collection.name}" is not below {prefix}'
            yield located.problem("conflict", text, ("prefixes", "production"))
    for number, webhook in enumerate(estuary.webhooks):
        for place, name in enumerate(webhook.collections):
            collection = _get(known, "collection", name, Collection)
            if collection is not None and not _fed_by_estuary(collection, known):
                text = f'webhooks[{number}].collections: collection "{name}" has no source of kind estuary'
                yield located.problem("conflict", text, ("webhooks", number, "collections", place))


def _route(located: Located, route: Route, known: Known) -> Iterator[Problem]:
    for field, names in (("nodes", route.nodes), ("fallback", route.fallback)):
        for number, name in enumerate(names):
            node = _get(known, "node", name, Node)
            if node is None:
                continue
            if node.gpu_memory_gb < route.min_gpu_memory_gb or node.gpu_count < route.gpu:
                text = f'{field}[{number}]: node "{name}" has too little GPU for it'
                yield located.problem("conflict", text, (field, number))
