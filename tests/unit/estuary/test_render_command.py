"""`sophia estuary render` from its arguments to its files and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sophia.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("SOPHIA_HOME", str(tmp_path / "home"))

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sophia", "estuary", "render", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return command


def test_files_of_all_environments_that_check_themselves(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("--output", str(tmp_path / "build"))
    assert (code, len(out.splitlines())) == (0, 3)
    root = tmp_path / "build" / "staging" / "flow.yaml"
    code, out, _ = run("--check", str(root))
    assert (code, "definitions, nothing wrong" in out) == (0, True)
    # A file that somebody edited is refused with its place.
    captures = root.with_name("captures.flow.yaml")
    captures.write_text(captures.read_text().replace("private_key:", "privateKey:"))
    code, _, err = run("--check", str(root))
    assert (code, 'unknown property "privateKey"; the key is `private_key`' in err) == (2, True)
    # Rendering again mends it, and says which files are not wanted any more.
    (root.parent / "old.flow.yaml").write_text(captures.read_text())
    code, out, _ = run("-e", "staging", "-o", str(tmp_path / "build"))
    assert (code, out.rstrip().endswith("1 old ones removed")) == (0, True)
    assert run("--check", str(root))[0] == 0


def test_printed(run: Run) -> None:
    code, out, err = run("-e", "production")
    assert (code, out.startswith("# --- production/flow.yaml\n")) == (0, True)
    assert "image: ghcr.io/estuary/materialize-webhook:v1" in out
    assert "conversations: columns are the catalog's" in err


def test_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    code, _, err = run("--check", str(tmp_path / "none.yaml"))
    assert (code, "cannot be read: No such file or directory" in err) == (2, True)
