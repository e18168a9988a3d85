"""The layers of the tree, held by reading every import: sophia <- resources <- sophia_assets <- jobs <- sensors."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Each may import itself and what stands before it.
LAYERS = ("sophia", "resources", "sophia_assets", "jobs", "sensors")
# The one place that puts all layers together.
COMPOSER = Path("sophia_assets/definitions.py")
# Inside the library: a module may import only modules of its own row and of rows above.
CORE = (
    ("sophia.errors",),
    ("sophia.documents", "sophia.settings", "sophia.sql"),
    ("sophia.database", "sophia.catalog"),
    ("sophia.inbox", "sophia.sample", "sophia.embedding"),
    ("sophia.capture", "sophia.indexing", "sophia.stores"),
    ("sophia.estuary.keys", "sophia.estuary.naming", "sophia.estuary.stamps"),
    ("sophia.estuary.catalog", "sophia.estuary.intake", "sophia.estuary.source"),
    ("sophia.estuary.control", "sophia.estuary.stand_in"),
    ("sophia.estuary.journals",),
)
HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "kubernetes",
    "weaviate",
    "pinecone",
    "snowflake",
    "docker",
    "dagster",
    "matplotlib",
)


def _modules(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if "__pycache__" not in path.parts)


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.lineno, node.module or ""


def test_the_composer_is_where_the_exception_says() -> None:
    assert (ROOT / "sophia_assets").is_dir()
    assert [layer for layer in LAYERS if not (ROOT / layer).is_dir()] == []


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_only_downwards(layer: str) -> None:
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    faults = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in _modules(layer)
        if path.relative_to(ROOT) != COMPOSER
        for line, name in _imports(path)
        if name.split(".")[0] in above
    ]
    assert faults == []


def test_the_library_knows_no_dagster() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in _modules("sophia")
        for line, name in _imports(path)
        if name.split(".")[0].startswith("dagster")
    ]
    assert faults == []


@pytest.mark.parametrize("row", range(len(CORE)))
def test_core_modules_import_only_downwards(row: int) -> None:
    above = tuple(name for later in CORE[row + 1 :] for name in later)
    faults = []
    for module in CORE[row]:
        base = ROOT / Path(*module.split("."))
        for path in [base.with_suffix(".py")] if base.with_suffix(".py").exists() else sorted(base.rglob("*.py")):
            faults += [
                f"{path.relative_to(ROOT)}:{line} imports {name}"
                for line, name in _imports(path)
                if name.startswith(above)
            ]
    assert faults == []


def _loaded_after(statement: str) -> set[str]:
    """Heavy packages in `sys.modules` of a new interpreter after `statement`."""
    code = f"import sys\n{statement}\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_light_modules_load_nothing_heavy() -> None:
    """Every command and every Dagster process pays for these imports."""
    modules = (
        *("settings", "documents", "inbox", "capture", "database", "indexing.indexer", "indexing.search"),
        *("indexing.status", "stores", "embedding", "catalog", "sample"),
    )
    statement = "\n".join(f"import sophia.{module}" for module in modules)
    assert _loaded_after(statement).isdisjoint(HEAVY)


def test_command_line_loads_nothing_heavy() -> None:
    assert _loaded_after("import sophia.cli").isdisjoint(HEAVY)


def test_probe_sees_a_heavy_import() -> None:
    assert "matplotlib" in _loaded_after("import matplotlib")
