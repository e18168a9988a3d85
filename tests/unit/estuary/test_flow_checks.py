"""Invented names and keys are refused with file, line and what to write instead; what Estuary takes is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sophia.catalog.errors import CatalogError
from sophia.estuary.catalog.flow_checks import check_file
from sophia.estuary.catalog.flow_schema import flow_schema
from sophia.estuary.catalog.locations import Location, locate

COLLECTION = """\
collections:
  acme/docs:
    key: [/id]
    schema:
      type: object
      required: [id]
      properties: {id: {type: integer}, body: {type: string}, vector: {type: array}}
"""
WEBHOOK = """\
materializations:
  acme/hook:
    endpoint:
      connector:
        image: ghcr.io/estuary/materialize-webhook:v1
        config: {address: https://sophia.example.com/estuary/}
    bindings:
      - source: acme/docs
        resource: {relativePath: acme/docs}
"""
POSTGRES = """\
captures:
  acme/pg:
    endpoint:
      connector:
        image: ghcr.io/estuary/source-postgres:v3
        config:
          address: db.example.com:5432
          user: flow_capture
          database: app
          historyMode: false
          credentials: {auth_type: UserPassword, password: "${PASSWORD}"}
    bindings:
      - resource: {namespace: public, stream: docs}
        target: acme/docs
"""
SNOWFLAKE = """\
captures:
  acme/sf:
    endpoint:
      connector:
        image: ghcr.io/estuary/source-snowflake:v1
        config:
          host: acme-1.snowflakecomputing.com
          database: SOPHIA_AI
          credentials: {auth_type: jwt, user: FLOW, private_key: "${KEY}"}
    bindings:
      - resource: {schema: PUBLIC, table: DOCS}
        target: acme/docs
"""
TRIGGER = """\
    triggers:
      config:
        - url: https://sophia.example.com/estuary-events
          payloadTemplate: '{"m":"{{materialization_name}}"}'
"""

Check = Callable[[str], list[str]]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """What is wrong with a file of that text, one sentence each."""
    monkeypatch.chdir(tmp_path)

    def problems(text: str) -> list[str]:
        (tmp_path / "flow.yaml").write_text(text)
        try:
            check_file(Path("flow.yaml"))
        except CatalogError as error:
            return [str(problem) for problem in error.problems]
        return []

    return problems


@pytest.mark.parametrize(
    "text", [WEBHOOK, POSTGRES, SNOWFLAKE, WEBHOOK + TRIGGER], ids=["webhook", "postgres", "snowflake", "trigger"]
)
def test_what_estuary_takes(check: Check, text: str) -> None:
    assert check(COLLECTION + text) == []


# What generated documentation claims of Estuary, with a part of the answer.
INVENTIONS: dict[str, tuple[str, str, str, str]] = {
    "a connector for Weaviate": (
        WEBHOOK,
        "ghcr.io/estuary/materialize-webhook:v1",
        "ghcr.io/estuary/materialize-weaviate:v1",
        'Estuary has no connector "materialize-weaviate"; use materialize-webhook',
    ),
    "a misspelt connector": (
        POSTGRES,
        "estuary/source-postgres:v3",
        "estuary/source-postgresql:v3",
        'has no connector "source-postgresql"; did you mean "source-postgres"?',
    ),
    "a materialisation as a capture": (
        POSTGRES,
        "estuary/source-postgres:v3",
        "estuary/materialize-postgres:v5",
        '"materialize-postgres" is no connector of a capture',
    ),
    "an image without a tag": (POSTGRES, "source-postgres:v3", "source-postgres", "should be an image with its tag"),
    "an HTTP method": (
        WEBHOOK,
        "/estuary/}",
        "/estuary/, method: PUT}",
        'unknown property "method"; the connector always sends POST',
    ),
    "an address without a slash at its end": (WEBHOOK, "com/estuary/}", "com/estuary}", "that ends in a slash"),
    "a path with a slash at its beginning": (
        WEBHOOK,
        "{relativePath: acme/docs}",
        "{relativePath: /acme/docs}",
        "should be a path without a slash at its beginning",
    ),
    "a path by another name": (
        WEBHOOK,
        "{relativePath:",
        "{path:",
        'unknown property "path"; the key is `relativePath`',
    ),
    "a pointer as a field's option": (
        WEBHOOK,
        "resource: {relativePath: acme/docs}",
        "resource: {relativePath: acme/docs}\n        fields: {recommended: true, include: {vector: /vector}}",
        'fields.include.vector: "/vector" should be an object of the connector\'s options',
    ),
    "camel case in Snowflake's credentials": (
        SNOWFLAKE,
        "private_key:",
        "privateKey:",
        'unknown property "privateKey"; the key is `private_key`',
    ),
    "an account in place of a host": (
        SNOWFLAKE,
        "host: acme-1.snowflakecomputing.com",
        "account: acme-1",
        'unknown property "account"; the key is `host`',
    ),
    "a host with a protocol": (
        SNOWFLAKE,
        "host: acme-1",
        "host: https://acme-1",
        "should be a host that ends in .snowflakecomputing.com",
    ),
    "host and port apart": (
        POSTGRES,
        "address: db.example.com:5432",
        "host: db.example.com\n          port: 5432",
        'unknown property "host"; the key is `address`, as host:port',
    ),
    "a password outside of credentials": (
        POSTGRES,
        "credentials: {auth_type: UserPassword, password: ",
        "credentials: {auth_type: UserPassword}\n          password: ",
        "",
    ),
    "schema and table of a capture": (
        POSTGRES,
        "{namespace: public, stream: docs}",
        "{schema: public, table: docs}",
        'unknown property "table"; the key is `stream`',
    ),
    "an invented backfill mode": (POSTGRES, "stream: docs}", "stream: docs, mode: Full}", '"Full" is not one of'),
    "a trigger without a template": (
        WEBHOOK + TRIGGER,
        "payloadTemplate:",
        "payload:",
        'unknown property "payload"; the key is `payloadTemplate`',
    ),
    "a trigger that deletes": (
        WEBHOOK + TRIGGER,
        "          payloadTemplate",
        "          method: DELETE\n          payloadTemplate",
        '"DELETE" is not one of "POST", "PUT", "PATCH"',
    ),
    "the run's id in a template": (
        WEBHOOK + TRIGGER,
        "{{materialization_name}}",
        "{{flow_run_id}}",
        'the variable "flow_run_id" is not given by every version of Estuary; leave the run\'s id out',
    ),
    "a misspelt variable": (
        WEBHOOK + TRIGGER,
        "{{materialization_name}}",
        "{{materialisation_name}}",
        'did you mean "materialization_name"?',
    ),
    "a target of a materialisation": (WEBHOOK, "- source:", "- target:", "the key is `source`; `target` belongs to"),
    "a source that is not there": (
        WEBHOOK,
        "source: acme/docs",
        "source: acme/dogs",
        'collection "acme/dogs" is not in this tree; did you mean "acme/docs"?',
    ),
    "a target that is not there": (
        POSTGRES,
        "target: acme/docs",
        "target: acme/dcos",
        'collection "acme/dcos" is not in this tree; did you mean "acme/docs"?',
    ),
    "a name without a prefix": (POSTGRES, "target: acme/docs", "target: docs", "should be a full name such as"),
    "an interval in words": (
        SNOWFLAKE,
        "    bindings:",
        "    interval: five minutes\n    bindings:",
        "a duration such as 5m",
    ),
}


@pytest.mark.parametrize("name", INVENTIONS)
def test_inventions_are_refused(check: Check, name: str) -> None:
    text, old, new, wanted = INVENTIONS[name]
    assert old in text
    problems = check(COLLECTION + text.replace(old, new, 1))
    assert any(wanted in problem for problem in problems), problems
    assert all(problem.startswith("flow.yaml:") for problem in problems)


@pytest.mark.parametrize(
    ("text", "line", "wanted"),
    [
        (
            "captures:\n  - name: acme/pg\n    endpoint: {}\n",
            1,
            "captures: a list should be a mapping from full names to definitions; Estuary has no list with `name:`",
        ),
        (
            COLLECTION + "    derivation:\n      using: {}\n",
            8,
            'collection "acme/docs": unknown property "derivation"; the key is `derive`',
        ),
        (
            "derivations:\n  acme/x: {}\n",
            1,
            'unknown property "derivations"; a derivation is a collection with `derive`',
        ),
        ("flow: run\n", 1, 'unknown property "flow"'),
        (COLLECTION.replace("key: [/id]", "key: [id]"), 3, 'key[0]: "id" should be a JSON pointer such as /id'),
        (COLLECTION.replace("key: [/id]", "keys: [/id]"), 3, 'unknown property "keys"; did you mean "key"?'),
        (COLLECTION.replace("acme/docs:", "docs:"), 2, "should be a full name such as"),
        (
            COLLECTION.replace("    schema:", "    readSchema: {}\n    writeSchema: {}\n    schema:"),
            6,
            "schema: take it out",
        ),
        (COLLECTION.replace("/id]", "/nr]"), 3, "key[0]: /nr is not in the schema; describe it below `properties`"),
        (COLLECTION.replace("required: [id]", "required: []"), 3, "/id is not required by the schema; add it"),
        (COLLECTION.replace("type: integer", "type: number"), 3, "/id may be number; a key is a string, an integer or"),
        (COLLECTION.replace("{type: integer}", "{}"), 3, "/id has no type in the schema"),
        (COLLECTION + "collections: {}\n", 8, 'key "collections" is given twice'),
        ("import: [../elsewhere.yaml]\n", 1, '"../elsewhere.yaml" is not a file below this tree'),
        ("import: [https://example.com/flow.yaml]\n", 1, "is not a file below this tree; only such imports are read"),
        ("- captures\n", 1, "should be a mapping with captures, collections"),
        ("captures: [\n", 2, "is not valid YAML"),
    ],
)
def test_faults_name_their_line(check: Check, text: str, line: int, wanted: str) -> None:
    problems = check(text)
    assert any(wanted in problem for problem in problems), problems
    (found, *_) = [problem for problem in problems if wanted in problem]
    assert found.startswith(f"flow.yaml:{line} "), found


def test_two_triggers_with_one_method_and_url(check: Check) -> None:
    second = TRIGGER.partition("config:\n")[2]
    (problem,) = check(COLLECTION + WEBHOOK + TRIGGER + second)
    assert "has the method and URL of triggers.config[0]; Estuary would fire only the first" in problem


def test_two_bindings_that_lead_to_one_url(check: Check) -> None:
    more = "      - source: acme/docs\n        resource: {relativePath: acme/docs}\n"
    (problem,) = check(COLLECTION + WEBHOOK + more)
    assert "leads where bindings[0] leads; nothing else tells the receiver which collection" in problem


def test_two_captures_into_one_collection(check: Check) -> None:
    (problem,) = check(COLLECTION + POSTGRES + POSTGRES.removeprefix("captures:\n").replace("acme/pg", "acme/pg2"))
    assert '"acme/docs" is written by "acme/pg" already' in problem


def test_one_table_captured_twice(check: Check) -> None:
    (problem,) = check(COLLECTION + POSTGRES + "".join(POSTGRES.splitlines(keepends=True)[-2:]))
    assert "bindings[1].resource: is the same as that of bindings[0]" in problem


def test_no_value_of_a_secret_is_in_a_message(check: Check) -> None:
    problems = check(COLLECTION + POSTGRES.replace('"${PASSWORD}"', "20261121"))
    assert problems
    assert not any("20261121" in problem for problem in problems)


def test_imports_configs_and_schemas_in_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "flow.yaml").write_text("import: [sub/flow.yaml]\n")
    (tmp_path / "sub" / "flow.yaml").write_text(
        "import: [more.yaml]\ncollections:\n  acme/docs: {key: [/id], schema: docs.schema.yaml}\n"
    )
    (tmp_path / "sub" / "docs.schema.yaml").write_text(
        "type: object\nrequired: [id]\nproperties: {id: {type: integer}}\n"
    )
    (tmp_path / "sub" / "more.yaml").write_text(WEBHOOK)
    tree = check_file(tmp_path / "flow.yaml")
    assert set(tree.specs) == {("collection", "acme/docs"), ("materialization", "acme/hook")}
    (tmp_path / "sub" / "docs.schema.yaml").write_text("type: object\nproperties: {id: {type: integer}}\n")
    with pytest.raises(CatalogError, match="/id is not required"):
        check_file(tmp_path / "flow.yaml")
    (tmp_path / "sub" / "docs.schema.yaml").unlink()
    with pytest.raises(CatalogError, match=r'"docs.schema.yaml" is not a file below this tree'):
        check_file(tmp_path / "flow.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "import: [../secret.yaml]\n",
        "import: [link.yaml]\n",
        "collections:\n  acme/docs: {key: [/id], schema: ../secret.yaml}\n",
        POSTGRES.partition("        config:")[0] + "        config: ../secret.yaml\n    bindings: []\n",
    ],
)
def test_nothing_outside_of_the_tree_is_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "secret.yaml").write_text("not-for-you: 1\n")
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    (folder / "flow.yaml").write_text(text)
    with pytest.raises(CatalogError, match="is not a file below this tree") as refused:
        check_file(folder / "flow.yaml")
    assert "not-for-you" not in str(refused.value)


def test_a_definition_given_twice(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(f"import: [other.yaml]\n{COLLECTION}")
    (tmp_path / "other.yaml").write_text(COLLECTION)
    with pytest.raises(CatalogError, match=r'collection "acme/docs": is defined in .*flow.yaml already'):
        check_file(tmp_path / "flow.yaml")


def test_a_locations_types_are_those_of_all_parts() -> None:
    schema = {
        "$defs": {"Row": {"$anchor": "Row", "required": ["id"], "properties": {"id": {"type": ["string", "null"]}}}},
        "allOf": [{"$ref": "#Row"}, {"properties": {"id": {"type": "string"}, "a/b": {"$ref": "#/$defs/Row"}}}],
    }
    assert locate(schema, "/id") == Location(True, True, frozenset(["string"]))
    assert locate(schema, "/a~1b/id") == Location(True, False, frozenset(["string", "null"]))
    assert locate({"$ref": "#Loop", "$defs": {"Loop": {"$anchor": "Loop", "$ref": "#Loop"}}}, "/x").described is False


def test_the_schema_lets_nothing_unknown_through() -> None:
    """Every object of a connector that lists its properties is closed to others."""
    for name, definition in flow_schema()["$defs"].items():
        if name.endswith(("Config", "Resource")):
            assert definition["additionalProperties"] is False, name
