"""What estuary.yaml and the collections say of each other is checked when the catalog is read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sophia.catalog import CatalogError, default_path, load

Problems = Callable[..., list[str]]


@pytest.fixture
def problems(tmp_path: Path) -> Problems:
    """What is wrong with our own catalog after texts in some of its files were replaced."""

    def edited(**edits: tuple[str, str]) -> list[str]:
        folder = tmp_path / "catalog"
        shutil.copytree(default_path(), folder, dirs_exist_ok=True)
        for name, (old, new) in edits.items():
            file = folder / f"{name}.yaml"
            text = file.read_text()
            assert old in text, f"{name}.yaml has no {old!r}"
            file.write_text(text.replace(old, new, 1))
        try:
            load(folder)
        except CatalogError as error:
            return [problem.message for problem in error.problems]
        return []

    return edited


def test_our_own_is_sound(problems: Problems) -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("edits", "wanted"),
    [
        (
            {"estuary": ("token: estuary_webhook_token", "token: estuary_web_token")},
            'webhooks[0].token: secret "estuary_web_token" does not exist; did you mean "estuary_webhook_token"?',
        ),
        (
            {"estuary": ("- collection: conversations", "- collection: conversation")},
            'bindings[0].collection: collection "conversation" does not exist; did you mean "conversations"?',
        ),
        (
            {"estuary": ("secret: estuary_app_password", "secret: nothing")},
            'secret "nothing" does not exist',
        ),
        (
            {"estuary": ("- collection: business_metrics", "- collection: conversations")},
            'bindings[0].collection: capture "app" writes "conversations" already',
        ),
        (
            {"collections": ("estuary: sophia/conversations", "estuary: sophia/documents")},
            'estuary: sophia/documents is already the name of collection "documents"',
        ),
        (
            {"estuary": ("- collection: conversations", "- collection: vector_updates")},
            'bindings[0].collection: neither it nor collection "vector_updates" names a table',
        ),
        (
            {"estuary": ("- collection: conversations", "- collection: documents")},
            'bindings[0].collection: collection "documents" has no key; name its columns there',
        ),
        (
            {"collections": ("{local: sample, cluster: snowflake}", "{local: sample, cluster: estuary}")},
            'bindings[0].collection: Snowflake sends "ID", and the key of its documents is "id"',
        ),
        (
            {"estuary": ("production: sophia\n", "production: acme\n")},
            'prefixes.production: collection "conversations" is not below acme/',
        ),
        (
            {"estuary": ("production: sophia\n", "production: sophia/staging\n")},
            "prefixes: two environments share a prefix",
        ),
        (
            {"estuary": ("      token:", "      collections: [documents]\n      token:")},
            'webhooks[0].collections: collection "documents" has no source of kind estuary',
        ),
        (
            {"estuary": ("connector: source-snowflake", "connector: source-snowflke")},
            'connector: "source-snowflke" is not',
        ),
        ({"estuary": ("connector: source-snowflake", "connector: source-snowflake\n    history: true")}, "history and"),
        ({"collections": ("    key: [id]\n", "")}, "key: is required of a collection that comes from Estuary"),
        ({"collections": ("      id: int8\n", "")}, 'columns: has no "id", which is part of the key'),
        ({"collections": ("      id: int8\n", "      id: bigint\n")}, 'columns.id: "bigint" does not match'),
    ],
)
def test_faults(problems: Problems, edits: dict[str, tuple[str, str]], wanted: str) -> None:
    found = problems(**edits)
    assert any(problem.startswith(wanted) for problem in found), found
