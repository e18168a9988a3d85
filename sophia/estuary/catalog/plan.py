"""The difference between the rendered catalog and the published one; pure.

Both sides are brought to one form first: what flowctl returns has encrypted configs, other spellings of the same thing,
and marks of the publication. Values of secrets are never compared, since only Estuary can read what it encrypted.
Some changes cost more than they look: these are named with the change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sophia.platform.reconcile import unified_diff
from sophia.platform.text import to_yaml

Key = tuple[str, str]
"""Kind (capture, collection, materialization or test) and full name."""
Models = Mapping[Key, Any]
Action = Literal["add", "change", "remove", "none"]

SECRET = "(secret)"  # noqa: S105 - what stands for one
_SECRET_KEYS = frozenset(
    ("password", "private_key", "privateKey", "pineconeApiKey", "openAiApiKey", "api_key", "token")
)
_SUFFIX = "_sops"
_DEFAULTS: dict[str, Any] = {"disable": False, "backfill": 0, "priority": 0, "delete": False}
_ORDER = {"capture": 0, "collection": 1, "materialization": 2, "test": 3}


@dataclass(frozen=True, slots=True)
class SpecChange:
    """One definition's way from what is published to what is rendered."""

    action: Action
    kind: str
    name: str
    diff: str = ""
    dangers: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """Kind and name."""
        return self.kind, self.name


@dataclass(frozen=True, slots=True)
class CatalogPlan:
    """All changes of one environment, those that change nothing among them.

    What is only published may belong to somebody else: it is shown, and removed only on request.
    """

    changes: tuple[SpecChange, ...]

    @property
    def empty(self) -> bool:
        """Whether everything that is rendered is published."""
        return not self.of("add", "change")

    def of(self, *actions: Action) -> tuple[SpecChange, ...]:
        """The changes with one of these actions."""
        return tuple(change for change in self.changes if change.action in actions)

    def summary(self) -> str:
        """One line: how much is to do."""
        counts = Counter(change.action for change in self.changes)
        words: dict[Action, str] = {"add": "to add", "change": "to change", "remove": "to remove (only with --prune)"}
        return (
            ", ".join(f"{counts[action]} {word}" for action, word in words.items() if counts[action]) or "nothing to do"
        )


def compare(desired: Models, live: Models) -> CatalogPlan:
    """The changes from `live` to `desired`; a definition that is only live is one to remove."""
    keys = sorted({*desired, *live}, key=lambda key: (_ORDER.get(key[0], len(_ORDER)), key[1]))
    return CatalogPlan(tuple(_change(key, desired.get(key), live.get(key)) for key in keys))


def _change(key: Key, desired: Any, live: Any) -> SpecChange:
    kind, name = key
    before = None if live is None else normalised(kind, live)
    after = None if desired is None else normalised(kind, desired)
    if before is not None and after is not None:
        _keep_backfills(before, after)
    if before == after:
        return SpecChange("none", kind, name)
    diff = unified_diff(f"{kind}/{name}.yaml", _text(before), _text(after))
    if before is None:
        return SpecChange("add", kind, name, diff)
    if after is None:
        return SpecChange("remove", kind, name, diff, (f"removing a {kind} cannot be undone",))
    return SpecChange("change", kind, name, diff, tuple(dict.fromkeys(_dangers(kind, before, after))))


def text_of(kind: str, model: Any) -> str:
    """A definition in the form in which it is compared, as YAML."""
    return _text(normalised(kind, model))


def _text(model: Any) -> str:
    return "" if model is None else to_yaml({"steps": model} if isinstance(model, list) else model)


def normalised(kind: str, model: Any) -> Any:
    """One form of a definition: without marks of a publication, without defaults, secrets as a word."""
    value = _plain(model)
    if not isinstance(value, dict):
        return value
    value.pop("expectPubId", None)
    _drop_defaults(value)
    endpoint = value.get("endpoint")
    for part in endpoint.values() if isinstance(endpoint, dict) else ():
        if isinstance(part, dict) and isinstance(part.get("config"), dict):
            part["config"].pop("sops", None)
            _drop_empty(part["config"])
    if kind == "collection":
        _one_schema(value)
    if kind == "materialization":
        _one_materialization(value)
    if kind == "test" and set(value) <= {"description", "steps"}:
        return value.get("steps", [])
    return value


def _plain(value: Any, key: str = "") -> Any:
    """A deep copy with the values of secrets replaced and their encrypted names restored."""
    if isinstance(value, dict):
        plain: dict[str, Any] = {}
        header = set(value) >= {"name", "value"} and key == "customHeaders"
        for name, item in value.items():
            short = name.removesuffix(_SUFFIX)
            secret = short != name or (
                isinstance(item, str) and (short in _SECRET_KEYS or (header and name == "value"))
            )
            plain[short] = SECRET if secret and not isinstance(item, dict | list) else _plain(item, short)
        if key == "headers" and "customHeaders" not in plain:
            plain = dict.fromkeys(plain, SECRET)
        return plain
    if isinstance(value, list):
        return [_plain(item, key) for item in value]
    return value


def _drop_defaults(value: dict[str, Any]) -> None:
    for name, default in _DEFAULTS.items():
        if value.get(name) == default:
            del value[name]
    for name in ("shards", "projections"):
        if isinstance(value.get(name), dict):
            _drop_defaults(value[name])
            if not value[name]:
                del value[name]
    for binding in value.get("bindings", ()):
        if isinstance(binding, dict):
            _drop_defaults(binding)


def _drop_empty(config: dict[str, Any]) -> None:
    """Estuary's form writes empty sections that mean nothing."""
    for name in [name for name, item in config.items() if item in ({}, None)]:
        del config[name]


def _one_schema(value: dict[str, Any]) -> None:
    """A read schema that Estuary infers is no other schema: what we say is the write schema."""
    if "writeSchema" in value and "flow://inferred-schema" in str(value.get("readSchema")):
        value["schema"] = value.pop("writeSchema")
        del value["readSchema"]
    if isinstance(value.get("schema"), dict):
        value["schema"].pop("x-infer-schema", None)


def _one_materialization(value: dict[str, Any]) -> None:
    for binding in value.get("bindings", ()):
        source = binding.get("source")
        if isinstance(source, dict) and set(source) == {"name"}:
            binding["source"] = source["name"]
        fields = binding.get("fields")
        if isinstance(fields, dict):
            if "include" in fields:
                fields["require"] = fields.pop("include")
            for name in ("require", "exclude"):
                if not fields.get(name, True):
                    del fields[name]
        binding["fields"] = fields or {"recommended": True}
    triggers = value.get("triggers")
    if isinstance(triggers, dict) and triggers.get("config"):
        config = triggers["config"]
        each = list(config.values()) if isinstance(config, dict) else list(config)
        for trigger in each:
            trigger.setdefault("method", "POST")
            if "timeoutSecs" in trigger:
                trigger["timeout"] = f"{trigger.pop('timeoutSecs')}s"
            for name, default in (("timeout", "30s"), ("maxAttempts", 3)):
                if trigger.get(name) == default:
                    del trigger[name]
        triggers["config"] = sorted(each, key=lambda trigger: str(trigger.get("url")))
        triggers.pop("sops", None)
    elif "triggers" in value:
        del value["triggers"]


def _keep_backfills(before: Any, after: Any) -> None:
    """Counters of backfills that people raised stay: publishing a lower one is no wish of the catalog."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return
    raised = {_target(binding): binding.get("backfill", 0) for binding in before.get("bindings", ())}
    for binding in after.get("bindings", ()):
        counter = max(raised.get(_target(binding), 0), binding.get("backfill", 0))
        if counter:
            binding["backfill"] = counter


def _target(binding: Mapping[str, Any]) -> str:
    return str(binding.get("target", binding.get("source")))


def _dangers(kind: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    if kind == "collection":
        if before.get("key") != after.get("key"):
            yield (
                "the key changes: Estuary refuses that of a collection that has data; it must be reset, and every "
                "document gets another id with us"
            )
        if _partitions(before) != _partitions(after):
            yield "the partitions change: Estuary refuses that of a collection that has data"
    if kind in ("capture", "materialization") and isinstance(before, dict):
        yield from _task_dangers(kind, before, after)


def _task_dangers(kind: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    old, new = ({_target(binding): binding for binding in model.get("bindings", ())} for model in (before, after))
    for name in sorted(set(old) - set(new)):
        yield f"the binding of {name} goes: nothing more of it arrives"
    for name in sorted(set(old) & set(new)):
        if new[name].get("backfill", 0) > old[name].get("backfill", 0):
            yield (
                f"{name} is read again from the beginning; rows that were deleted meanwhile are not named: run "
                "`sophia estuary sweep` afterwards"
            )
        if old[name].get("resource") != new[name].get("resource"):
            yield f"the resource of {name} changes: Estuary takes it for a new binding and begins again"
    if not before.get("shards", {}).get("disable") and after.get("shards", {}).get("disable"):
        yield "the task is disabled"
    if before.get("endpoint", {}).get("connector", {}).get("image") != after.get("endpoint", {}).get(
        "connector", {}
    ).get("image"):
        yield "the connector's image changes: read its list of changes first"
    if kind == "capture":
        yield from _capture_dangers(
            *(model.get("endpoint", {}).get("connector", {}).get("config", {}) for model in (before, after))
        )


def _capture_dangers(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for name in ("slotName", "publicationName"):
        if before.get("advanced", {}).get(name) != after.get("advanced", {}).get(name):
            yield f"{name} changes: every table is read again, and deletes in between are lost"
    for name in ("address", "host", "database"):
        if before.get(name) != after.get(name):
            yield f"{name} changes: another server has other positions, so every table must be read again"
    if before.get("historyMode", False) != after.get("historyMode", False):
        yield "historyMode changes: documents of one key are reduced in another way"


def _partitions(model: dict[str, Any]) -> list[str]:
    projections = model.get("projections", {})
    return sorted(name for name, to in projections.items() if isinstance(to, dict) and to.get("partition"))
