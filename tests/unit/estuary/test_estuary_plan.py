"""What Estuary returns and what we render are brought to one form; what costs more than it looks is named."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sophia.errors import ConfigurationError
from sophia.estuary.catalog.plan import SECRET, compare, normalised
from sophia.estuary.catalog.references import filled, hidden, variables_in

CAPTURE: dict[str, Any] = {
    "endpoint": {
        "connector": {
            "image": "ghcr.io/estuary/source-postgres:v3",
            "config": {
                "address": "db.example.com:5432",
                "historyMode": False,
                "credentials": {"auth_type": "UserPassword", "password": "${PASSWORD}"},
                "advanced": {"slotName": "flow_slot", "publicationName": "flow_publication"},
            },
        }
    },
    "bindings": [{"resource": {"namespace": "public", "stream": "a"}, "target": "acme/a"}],
}
COLLECTION: dict[str, Any] = {
    "key": ["/id"],
    "schema": {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}},
    "projections": {"_meta/op": "/_meta/op"},
}
HOOK: dict[str, Any] = {
    "endpoint": {
        "connector": {
            "image": "ghcr.io/estuary/materialize-webhook:v1",
            "config": {
                "address": "https://sophia.example.com/estuary/",
                "headers": {"customHeaders": [{"name": "Authorization", "value": "Bearer ${TOKEN}"}]},
            },
        }
    },
    "bindings": [
        {"source": "acme/a", "resource": {"relativePath": "acme/a"}, "fields": {"recommended": True}},
    ],
    "triggers": {"config": [{"url": "https://x.example.com/", "headers": {"A": "${TOKEN}"}, "payloadTemplate": "{}"}]},
}


def altered(model: dict[str, Any], *path: Any, value: Any) -> dict[str, Any]:
    """A copy with another value at a place; None takes it out."""
    result: Any = copy.deepcopy(model)
    at = result
    for step in path[:-1]:
        at = at[step]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return result  # type: ignore[no-any-return]


def dangers(kind: str, before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    (change,) = compare({(kind, "acme/x"): after}, {(kind, "acme/x"): before}).changes
    assert change.action == "change"
    return change.dangers


@pytest.mark.parametrize(
    ("kind", "rendered", "live"),
    [
        ("capture", CAPTURE, {**CAPTURE, "expectPubId": "0102030405060708"}),
        (
            "capture",
            CAPTURE,
            altered(
                altered(CAPTURE, "endpoint", "connector", "config", "sops", value={"mac": "x"}),
                *("endpoint", "connector", "config", "credentials"),
                value={"auth_type": "UserPassword", "password_sops": "ENC[x]"},
            ),
        ),
        ("capture", CAPTURE, altered(CAPTURE, "bindings", 0, "disable", value=False)),
        ("capture", CAPTURE, altered(CAPTURE, "bindings", 0, "backfill", value=3)),
        ("capture", CAPTURE, altered(CAPTURE, "endpoint", "connector", "config", "networkTunnel", value={})),
        ("capture", CAPTURE, altered(CAPTURE, "shards", value={})),
        (
            "collection",
            COLLECTION,
            {
                "key": ["/id"],
                "projections": {"_meta/op": "/_meta/op"},
                "writeSchema": {**COLLECTION["schema"], "x-infer-schema": True},
                "readSchema": {"allOf": [{"$ref": "flow://write-schema"}, {"$ref": "flow://inferred-schema"}]},
            },
        ),
        ("materialization", HOOK, altered(HOOK, "bindings", 0, "source", value={"name": "acme/a"})),
        ("materialization", HOOK, altered(HOOK, "bindings", 0, "fields", value={"recommended": True, "require": {}})),
        (
            "materialization",
            HOOK,
            altered(
                altered(HOOK, "triggers", "sops", value={"mac": "x"}),
                *("triggers", "config"),
                value={
                    "one": {
                        "url": "https://x.example.com/",
                        "method": "POST",
                        "headers": {"A_sops": "ENC[y]"},
                        "payloadTemplate": "{}",
                        "timeoutSecs": 30,
                        "maxAttempts": 3,
                    }
                },
            ),
        ),
        ("test", [{"ingest": {}}], {"description": "", "steps": [{"ingest": {}}], "expectPubId": "01"}),
    ],
)
def test_what_means_the_same_is_no_change(kind: str, rendered: Any, live: Any) -> None:
    plan = compare({(kind, "acme/x"): rendered}, {(kind, "acme/x"): live})
    assert [change.diff for change in plan.changes] == [""]
    assert plan.empty


def test_no_secret_is_in_a_diff() -> None:
    before = altered(CAPTURE, "endpoint", "connector", "config", "credentials", "password", value="old-secret")
    after = altered(before, "endpoint", "connector", "config", "credentials", "password", value="new-secret")
    hook = altered(HOOK, "endpoint", "connector", "config", "headers", "customHeaders", 0, "value", value="hook-secret")
    plan = compare(
        {("capture", "acme/x"): altered(after, "bindings", value=[]), ("materialization", "acme/h"): hook},
        {("capture", "acme/x"): before},
    )
    text = "".join(change.diff for change in plan.changes)
    assert [change.action for change in plan.changes] == ["change", "add"]
    assert SECRET in text
    assert "secret" not in text.replace(SECRET, "")


def test_a_diff_shows_what_differs() -> None:
    (change,) = compare(
        {("collection", "acme/a"): altered(COLLECTION, "schema", "properties", "id", "type", value="string")},
        {("collection", "acme/a"): COLLECTION},
    ).changes
    assert "-      type: integer" in change.diff
    assert "+      type: string" in change.diff


@pytest.mark.parametrize(
    ("kind", "model", "path", "value", "wanted"),
    [
        ("collection", COLLECTION, ("key",), ["/nr"], "the key changes"),
        (
            "collection",
            COLLECTION,
            ("projections", "tenant"),
            {"location": "/tenant", "partition": True},
            "the partitions change",
        ),
        ("capture", CAPTURE, ("bindings",), [], "the binding of acme/a goes"),
        ("capture", CAPTURE, ("bindings", 0, "backfill"), 1, "acme/a is read again from the beginning"),
        ("capture", CAPTURE, ("bindings", 0, "resource", "stream"), "b", "the resource of acme/a changes"),
        ("capture", CAPTURE, ("shards",), {"disable": True}, "the task is disabled"),
        ("capture", CAPTURE, ("endpoint", "connector", "image"), "ghcr.io/estuary/source-postgres:v4", "image changes"),
        (
            "capture",
            CAPTURE,
            ("endpoint", "connector", "config", "advanced", "slotName"),
            "other",
            "slotName changes: every table is read again",
        ),
        ("capture", CAPTURE, ("endpoint", "connector", "config", "address"), "db2.example.com", "address changes"),
        ("capture", CAPTURE, ("endpoint", "connector", "config", "historyMode"), True, "historyMode changes"),
        (
            "materialization",
            HOOK,
            ("bindings", 0, "resource", "relativePath"),
            "acme/other",
            "the resource of acme/a changes",
        ),
    ],
)
def test_dangers(kind: str, model: dict[str, Any], path: tuple[Any, ...], value: Any, wanted: str) -> None:
    found = dangers(kind, model, altered(model, *path, value=value))
    assert any(danger.startswith(wanted) or wanted in danger for danger in found), found


def test_a_harmless_change_names_no_danger() -> None:
    assert dangers("collection", COLLECTION, altered(COLLECTION, "schema", "title", value="x")) == ()


def test_what_only_estuary_has_is_no_work() -> None:
    plan = compare({}, {("collection", "acme/a"): COLLECTION})
    assert [change.action for change in plan.changes] == ["remove"]
    assert plan.empty
    assert plan.summary() == "1 to remove (only with --prune)"


def test_normalising_leaves_the_model_alone() -> None:
    before = copy.deepcopy(HOOK)
    normalised("materialization", HOOK)
    assert before == HOOK


def test_references() -> None:
    value = {"a": "${ONE}/x", "b": ["Bearer ${TWO}", 7], "c": "$NO ${no}"}
    assert variables_in(value) == {"ONE", "TWO"}
    assert filled(value, {"ONE": "1", "TWO": "${ONE}"}) == {"a": "1/x", "b": ["Bearer ${ONE}", 7], "c": "$NO ${no}"}
    assert filled(value, {"ONE": "1"}, partly=True)["b"][0] == "Bearer ${TWO}"
    with pytest.raises(ConfigurationError, match="TWO is not set"):
        filled(value, {"ONE": "1", "TWO": ""})


def test_hidden_values() -> None:
    assert hidden("a long-secret b", ["long-secret", "a"]) == "a *** b"
    assert hidden('{"k": "first-line\\\\nsecond-line"}', ["first-line\nsecond-line"]) == '{"k": "***\\\\n***"}'
    assert hidden("xx abcdef", ["abcd", "abcdef"]) == "xx ***"
