"""Plan and apply Estuary's catalog: render, pull, compare, fill in, test, publish.

Only what differs is published, each definition with the publication that it was compared with: if somebody changed it
meanwhile, Estuary takes nothing. Secrets are filled in on the way and stay nowhere.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection as Names
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from sophia.catalog.errors import CatalogError
from sophia.catalog.models import Catalog, Environment
from sophia.errors import ConfigurationError
from sophia.estuary.catalog.columns import TableInfo
from sophia.estuary.catalog.flow_checks import problems_of
from sophia.estuary.catalog.flow_schema import schema_problems
from sophia.estuary.catalog.flowctl import Flowctl, write_private
from sophia.estuary.catalog.plan import CatalogPlan, Key, Models, SpecChange, compare
from sophia.estuary.catalog.references import as_published, filled, secret_variables, variables_in
from sophia.estuary.catalog.render import ROOT, render_tree
from sophia.estuary.catalog.tree import KINDS, read_tree
from sophia.estuary.naming import collection_name, prefix_of

ENVIRONMENTS: tuple[Environment, ...] = get_args(Environment)
SECTIONS = {kind: section for section, kind in KINDS.items()}
# Not yet published: Estuary takes such a definition only if it does not exist.
NEVER_PUBLISHED = "0000000000000000"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan with both of its sides. `unset` are variables that have no value here, so they were not compared."""

    environment: Environment
    plan: CatalogPlan
    desired: Models
    live: Models
    unset: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """What was published and removed, by kind and name, and what flowctl said last."""

    published: tuple[Key, ...]
    removed: tuple[Key, ...]
    message: str


def rendered_models(
    catalog: Catalog, environment: Environment, tables: Mapping[str, TableInfo] | None = None
) -> dict[Key, Any]:
    """The definitions of a rendered tree, checked.

    Raises:
        CatalogError: the tree breaks a rule of Estuary's; each place is named.
    """
    with TemporaryDirectory(prefix="sophia-estuary-") as folder:
        for path, text in render_tree(catalog, environment, tables).items():
            write_private(Path(folder) / path, text)
        tree = read_tree(Path(folder) / ROOT)
        problems = problems_of(tree)
        if problems:
            name = Path(folder).name
            raise CatalogError(
                replace(problem, path=f"{environment}{problem.path.rpartition(name)[2]}") for problem in problems
            )
        return tree.models()


def published(catalog: Catalog, environment: Environment, flowctl: Flowctl) -> dict[Key, Any]:
    """What is published below the environment's prefix, without other environments' trees; raises as `Flowctl.pull`."""
    own = prefix_of(catalog, environment)
    prefixes = (prefix_of(catalog, other) for other in ENVIRONMENTS if other != environment)
    others = tuple(prefix for prefix in prefixes if prefix.startswith(own))
    return {key: model for key, model in flowctl.pull(own).items() if not key[1].startswith(others)}


def prepare(
    catalog: Catalog,
    environment: Environment,
    flowctl: Flowctl,
    environ: Mapping[str, str],
    tables: Mapping[str, TableInfo] | None = None,
    backfill: Names[str] = (),
) -> Prepared:
    """What is rendered against what is published. `backfill` names collections to capture again from the beginning.

    Raises CatalogError, UnknownEntryError (a collection of `backfill`), and as `Flowctl.pull`.
    """
    desired = rendered_models(catalog, environment, tables)
    live = published(catalog, environment, flowctl)
    again = {collection_name(catalog, catalog.collection(name), environment) for name in backfill}
    desired = {key: _with_backfills(model, live.get(key), again) for key, model in desired.items()}
    missing = {name for name in again if not any(_writes(model, name) for model in desired.values())}
    if missing:
        raise ConfigurationError(f"no capture of the catalog writes {', '.join(sorted(missing))}")
    secrets = {secret.env for secret in catalog.secrets}
    unset = {name for model in desired.values() for name in variables_in(model) if not environ.get(name)} - secrets
    return Prepared(
        environment, compare(as_published(desired, live, environ), live), desired, live, tuple(sorted(unset))
    )


def apply(
    catalog: Catalog,
    prepared: Prepared,
    flowctl: Flowctl,
    environ: Mapping[str, str],
    *,
    prune: bool = False,
    secrets: bool = False,
) -> Applied:
    """Publish what differs; `secrets` also publishes tasks again whose secrets may be new, `prune` removes the rest.

    Raises:
        ConfigurationError: a variable that the published part refers to is not set, or has no value of its form.
        PublicationConflictError: somebody published meanwhile.
        SophiaError, TemporaryError: as `Flowctl.publish`; nothing was changed.
    """
    wanted = [change.key for change in prepared.plan.of("add", "change")]
    if secrets:
        wanted += [
            key for key, model in prepared.desired.items() if key not in wanted and secret_variables(catalog, model)
        ]
    removed = [change for change in prepared.plan.of("remove") if prune]
    message = ""
    if wanted:
        models = {key: _to_publish(prepared.desired[key], prepared.live.get(key)) for key in wanted}
        values = tuple(environ[name] for model in models.values() for name in variables_in(model) if environ.get(name))
        # As JSON, which is YAML too: an id such as 12e4567890123456 must not be read as a number.
        files = {ROOT: json.dumps(_document({key: filled(model, environ) for key, model in models.items()}), indent=1)}
        _check_filled(files[ROOT])
        flowctl.test(files, values)
        message = flowctl.publish(files, values)
    if removed:
        # Tasks before the collections that they read or write.
        message = flowctl.delete([change.name for change in sorted(removed, key=_removal_order)])
    return Applied(tuple(wanted), tuple(change.key for change in removed), message)


def _check_filled(text: str) -> None:
    """Refuse a value that Estuary would refuse, such as a host with a protocol; with the value, unless it is secret."""
    with TemporaryDirectory(prefix="sophia-estuary-") as folder:
        write_private(Path(folder) / ROOT, text)
        problems = [
            replace(problem, path="filled in", line=0) for problem in schema_problems(read_tree(Path(folder) / ROOT))
        ]
    if problems:
        raise CatalogError(problems)


def _removal_order(change: SpecChange) -> tuple[bool, str]:
    return change.kind == "collection", change.name


def _with_backfills(model: Any, live: Any, again: Names[str]) -> Any:
    """The model with the counters of what is published; one higher for the collections in `again`."""
    if not isinstance(model, dict) or "bindings" not in model:
        return model
    raised = {
        str(binding.get("target", _source_name(binding))): int(binding.get("backfill", 0))
        for binding in (live.get("bindings", ()) if isinstance(live, dict) else ())
    }
    result = copy.deepcopy(model)
    for binding in result["bindings"]:
        name = str(binding.get("target", _source_name(binding)))
        counter = raised.get(name, 0) + (1 if binding.get("target") in again else 0)
        if counter:
            binding["backfill"] = counter
    return result


def _source_name(binding: Mapping[str, Any]) -> Any:
    source = binding.get("source")
    return source.get("name") if isinstance(source, dict) else source


def _writes(model: Any, name: str) -> bool:
    return isinstance(model, dict) and any(binding.get("target") == name for binding in model.get("bindings", ()))


def _to_publish(model: Any, live: Any) -> Any:
    if isinstance(model, list):
        return model
    expected = live.get("expectPubId") if isinstance(live, dict) else NEVER_PUBLISHED
    return {**model, **({"expectPubId": expected} if expected else {})}


def _document(models: Models) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for (kind, name), model in models.items():
        document.setdefault(SECTIONS[kind], {})[name] = model
    return document
