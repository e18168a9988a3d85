"""Estuary's catalog planned and published through `flowctl`, played by a stand-in that is as strict as the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sophia.catalog import load
from sophia.cli import main
from sophia.platform import build_reconcilers
from sophia.platform.systems import systems_of
from sophia.settings import load_settings
from tests.flowctl import Catalog, install
from tests.waiting import until

TOKEN = "flow_sa_test"
VALUES = {
    "SOPHIA_ESTUARY_INTAKE_URL": "https://sophia.example.com/intake",
    "SOPHIA_ESTUARY_WEBHOOK_TOKEN": "webhook-token-of-the-test",
    "SOPHIA_ESTUARY_APP_ADDRESS": "db.example.com:5432",
    "SOPHIA_ESTUARY_APP_USER": "flow_capture",
    "SOPHIA_ESTUARY_APP_DATABASE": "app",
    "SOPHIA_ESTUARY_APP_PASSWORD": "password-of-the-test",
    "SOPHIA_ESTUARY_SNOWFLAKE_HOST": "acme-1.snowflakecomputing.com",
    "SOPHIA_ESTUARY_SNOWFLAKE_USER": "FLOW",
    "SOPHIA_ESTUARY_SNOWFLAKE_DATABASE": "SOPHIA_AI",
    "SOPHIA_ESTUARY_SNOWFLAKE_WAREHOUSE": "LOADING",
    "SOPHIA_ESTUARY_SNOWFLAKE_ROLE": "FLOW",
    "SOPHIA_ESTUARY_SNOWFLAKE_PRIVATE_KEY": "-----BEGIN KEY-----\nline-one-of-the-key\nline-two-of-the-key\n-----END",
}
SECRETS = [TOKEN, "webhook-token-of-the-test", "password-of-the-test", "line-one-of-the-key", "line-two-of-the-key"]
ALL = 9

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def estuary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """The stand-in on the PATH, a token, and every variable that the rendered catalog refers to."""
    catalog = install(tmp_path / "bin", TOKEN)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("FLOW_API_KEY", TOKEN)
    monkeypatch.delenv("FLOW_AUTH_TOKEN", raising=False)
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    return catalog


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`sophia estuary …`: exit code, output, messages. No secret may be in either."""
    monkeypatch.setenv("SOPHIA_HOME", str(tmp_path / "home"))

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sophia", "estuary", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        shown = capsys.readouterr()
        assert [secret for secret in SECRETS if secret in shown.out + shown.err] == []
        return code, shown.out, shown.err

    return command


@pytest.fixture(scope="module")
def first_state() -> dict[str, Any]:
    """What the stand-in holds after everything was published; filled by the first test that asks for it."""
    return {}


@pytest.fixture
def published(estuary: Catalog, run: Run, first_state: dict[str, Any]) -> Catalog:
    """Everything is published."""
    if not first_state:
        code, _, err = run("apply", "--environment", "production", "--yes")
        assert code == 0, err
        first_state.update(estuary.read())
    estuary.write(first_state)
    return estuary


def actions(run: Run, *arguments: str) -> dict[str, str]:
    code, out, err = run("plan", "--json", *arguments)
    assert code == 0, err
    return {change["name"]: change["action"] for change in json.loads(out)["changes"]}


def test_everything_is_added_then_nothing_is_to_do(estuary: Catalog, run: Run) -> None:
    assert list(actions(run).values()) == ["add"] * ALL
    assert run("apply", "-e", "production")[0] == 1
    assert estuary.specs == {}
    code, out, _ = run("apply", "-e", "production", "--yes")
    assert (code, f"{ALL} definitions published, 0 removed" in out, "Publish successful" in out) == (0, True, True)
    assert len(estuary.specs) == ALL
    # What Estuary returns has encrypted secrets, another form of triggers and files of its own.
    assert actions(run) == {}
    code, out, _ = run("apply", "-e", "production", "--yes")
    assert (code, "production: nothing to do" in out) == (0, True)
    assert [call["arguments"][1] for call in estuary.calls].count("publish") == 1


def test_values_reach_estuary_and_stay_nowhere(published: Catalog, tmp_path: Path) -> None:
    webhook = published.specs["sophia/webhook"]["model"]
    config = webhook["endpoint"]["connector"]["config"]
    assert config["address"] == "https://sophia.example.com/intake/estuary/"
    assert config["headers"]["customHeaders"][0]["value"] == "Bearer webhook-token-of-the-test"
    capture = published.specs["sophia/app/source-postgres"]["model"]["endpoint"]["connector"]["config"]
    assert (capture["address"], capture["user"]) == ("db.example.com:5432", "flow_capture")
    calls = [call for call in published.calls if call["source"]]
    assert [call["arguments"][1] for call in calls] == ["test", "publish"]
    for call in calls:
        assert (call["mode"], call["folder_mode"]) == ("-rw-------", "drwx------")
        assert not Path(call["source"]).exists()
        assert not Path(call["home"]).exists()
        assert call["home"] != str(Path.home())


def test_flowctl_gets_no_more_than_it_needs(published: Catalog) -> None:
    for call in published.calls:
        assert [name for name in call["environment"] if name.startswith("SOPHIA_")] == []
        assert "FLOW_API_KEY" in call["environment"]


def test_only_what_differs_is_published(published: Catalog, run: Run) -> None:
    before = published.specs
    binding = [{**before["sophia/webhook"]["model"]["bindings"][0]}]
    published.edit("sophia/webhook", bindings=binding)
    assert actions(run) == {"sophia/webhook": "change"}
    assert run("apply", "-e", "production", "--yes")[0] == 0
    after = published.specs
    assert len(after["sophia/webhook"]["model"]["bindings"]) == 3
    assert {name for name in after if after[name]["pub_id"] != before[name]["pub_id"]} == {"sophia/webhook"}


def test_dangers_are_named(published: Catalog, run: Run) -> None:
    published.edit("sophia/conversations", key=["/user_id"])
    published.edit("sophia/app/source-postgres", bindings=[])
    _, out, _ = run("plan")
    assert "! the key changes: Estuary refuses that of a collection that has data" in out
    assert "2 to change" in out


def test_a_publication_of_somebody_else_is_not_overwritten(published: Catalog, run: Run) -> None:
    published.edit("sophia/webhook", bindings=[])
    published.play("race")
    before = published.specs["sophia/webhook"]
    code, _, err = run("apply", "-e", "production", "--yes")
    assert (code, "somebody else published meanwhile, and nothing was changed" in err) == (3, True)
    assert published.specs["sophia/webhook"] == before


def test_a_definition_that_appeared_meanwhile_is_not_overwritten(
    estuary: Catalog, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sophia.estuary.catalog.flowctl import Flowctl

    test = Flowctl.test

    def test_while_somebody_publishes(*arguments: Any) -> str:
        said = test(*arguments)
        estuary.add("collection", "sophia/conversations", {"key": ["/id"], "schema": {}})
        return said

    monkeypatch.setattr(Flowctl, "test", test_while_somebody_publishes)
    assert run("apply", "-e", "production", "--yes")[0] == 3
    assert list(estuary.specs) == ["sophia/conversations"]


def test_what_others_published_is_shown_and_stays(published: Catalog, run: Run) -> None:
    published.add("collection", "sophia/theirs", {"key": ["/id"], "schema": {"type": "object"}})
    assert actions(run) == {"sophia/theirs": "remove"}
    published.edit("sophia/webhook", bindings=[])
    code, out, _ = run("apply", "-e", "production", "--yes")
    assert (code, "1 definitions published, 0 removed" in out) == (0, True)
    assert "sophia/theirs" in published.specs
    code, out, _ = run("apply", "-e", "production", "--yes", "--prune")
    assert (code, "0 definitions published, 1 removed" in out) == (0, True)
    assert "sophia/theirs" not in published.specs
    assert len(published.specs) == ALL


def test_trees_of_other_environments_are_not_ours(published: Catalog, run: Run) -> None:
    """Production's prefix is the beginning of staging's."""
    assert run("apply", "-e", "staging", "--yes")[0] == 0
    assert len(published.specs) == 2 * ALL
    assert actions(run) == {}
    assert run("apply", "-e", "production", "--yes", "--prune")[0] == 0
    assert len(published.specs) == 2 * ALL


def test_a_backfill_is_asked_for_once(published: Catalog, run: Run) -> None:
    code, out, _ = run("apply", "-e", "production", "--yes", "--backfill", "conversations")
    assert (code, "read again from the beginning" in out) == (0, True)
    (binding,) = published.specs["sophia/app/source-postgres"]["model"]["bindings"]
    assert binding["backfill"] == 1
    # The counter is Estuary's from now on: the next publication neither lowers nor raises it.
    assert actions(run) == {}
    assert run("apply", "-e", "production", "--yes", "--secrets")[0] == 0
    (binding,) = published.specs["sophia/app/source-postgres"]["model"]["bindings"]
    assert binding["backfill"] == 1
    code, _, err = run("plan", "--backfill", "vector_updates")
    assert (code, "no capture of the catalog writes sophia/vector_updates" in err) == (2, True)


def test_a_rotated_secret_is_published_on_request(
    published: Catalog, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOPHIA_ESTUARY_WEBHOOK_TOKEN", "the-next-token")
    assert actions(run) == {}
    code, out, _ = run("apply", "-e", "production", "--yes", "--secrets")
    assert (code, "3 definitions published" in out) == (0, True)
    config = published.specs["sophia/webhook"]["model"]["endpoint"]["connector"]["config"]
    assert config["headers"]["customHeaders"][0]["value"] == "Bearer the-next-token"


def test_what_is_not_known_here_makes_no_difference(
    published: Catalog, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan on a machine without the addresses and secrets shows what the catalog changed, and nothing else."""
    for name in ("SOPHIA_ESTUARY_APP_ADDRESS", "SOPHIA_ESTUARY_APP_PASSWORD", "SOPHIA_ESTUARY_INTAKE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert published.specs
    assert actions(run) == {}


def test_what_is_missing_is_said(estuary: Catalog, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOPHIA_ESTUARY_APP_ADDRESS")
    monkeypatch.delenv("SOPHIA_ESTUARY_APP_PASSWORD")
    code, _, err = run("plan")
    assert (code, "not compared, since they are not set here: SOPHIA_ESTUARY_APP_ADDRESS\n" in err) == (0, True)
    code, _, err = run("apply", "-e", "production", "--yes")
    assert (code, "SOPHIA_ESTUARY_APP_ADDRESS, SOPHIA_ESTUARY_APP_PASSWORD are not set" in err) == (2, True)
    monkeypatch.delenv("FLOW_API_KEY")
    code, _, err = run("plan")
    assert (code, "set FLOW_API_KEY (a service account's key), FLOW_AUTH_TOKEN, or" in err) == (2, True)
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = run("apply", "-e", "production", "--yes")
    assert (code, "flowctl is not installed" in err) == (2, True)
    assert estuary.specs == {}


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        (
            "SOPHIA_ESTUARY_INTAKE_URL",
            "https://sophia.example.com/intake/",
            'config.address: "https://sophia.example.com/intake//estuary/" should be an http or https URL',
        ),
        (
            "SOPHIA_ESTUARY_SNOWFLAKE_HOST",
            "https://acme-1.snowflakecomputing.com",
            "should be a host that ends in .snowflakecomputing.com, without protocol or port",
        ),
    ],
)
def test_values_of_a_wrong_form_are_not_published(
    estuary: Catalog, run: Run, monkeypatch: pytest.MonkeyPatch, name: str, value: str, wanted: str
) -> None:
    monkeypatch.setenv(name, value)
    code, _, err = run("apply", "-e", "production", "--yes")
    assert (code, wanted in err) == (2, True), err
    assert [call["source"] for call in estuary.calls] == [None]


def test_the_token_of_the_settings(estuary: Catalog, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOW_API_KEY")
    monkeypatch.setenv("SOPHIA_ESTUARY__TOKEN", TOKEN)
    assert run("plan")[0] == 0
    monkeypatch.setenv("SOPHIA_ESTUARY__TOKEN", "another-token")
    code, _, err = run("plan")
    assert (code, "Estuary refuses the token" in err, "another-token" in err) == (2, True, False)
    assert "FLOW_AUTH_TOKEN" in estuary.calls[-1]["environment"]


@pytest.mark.parametrize(
    ("fault", "code"), [("away", 3), ("publish-away", 3), ("bad", 1), ("leak", 1), ("publish-leak", 1)]
)
def test_failures(estuary: Catalog, run: Run, fault: str, code: int) -> None:
    """`run` asserts that no secret is shown, whatever flowctl says."""
    estuary.play(fault)
    assert run("apply", "-e", "production", "--yes")[0] == code
    assert estuary.specs == {}


def test_a_call_that_does_not_end(estuary: Catalog, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    estuary.play("slow")
    monkeypatch.setenv("SOPHIA_FLOWCTL__TIMEOUT_SECONDS", "1")
    code, _, err = run("plan")
    assert (code, "did not end within 1 s; raise SOPHIA_FLOWCTL__TIMEOUT_SECONDS" in err) == (3, True)


def test_an_end_on_the_way_leaves_no_file(estuary: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to end while flowctl works on files that hold secrets, both go."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("SOPHIA_HOME", str(tmp_path / "home"))
    estuary.play("slow-test")
    command = [sys.executable, "-m", "sophia", "estuary", "apply", "-e", "production", "--yes"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: any(call["source"] for call in estuary.calls), "the call of `flowctl catalog test`")
        assert len(list((tmp_path / "tmp").glob("*/flow.yaml"))) == 1
        process.terminate()
    assert process.returncode == 143
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_data_plane_is_given_on(estuary: Catalog, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOPHIA_FLOWCTL__DATA_PLANE", "ops/dp/public/test")
    assert run("apply", "-e", "production", "--yes")[0] == 0
    assert all("ops/dp/public/test" in call["arguments"] for call in estuary.calls if call["source"])


def test_the_platforms_kind_compares_with_what_is_published(published: Catalog) -> None:
    reconciler = build_reconcilers(load(), systems_of(load_settings(), os.environ))["estuary"]
    entries = {entry.name: entry for entry in reconciler.entries()}
    plan = reconciler.plan(entries["production"])
    assert (plan.empty, plan.observed.state) == (True, "present")
    before = plan.observed.digest
    published.edit("sophia/webhook", bindings=[])
    plan = reconciler.plan(entries["production"])
    assert [change.target for change in plan.changes if change.action != "none"] == ["materialization/sophia/webhook"]
    assert plan.observed.digest != before
    assert reconciler.observe(entries["staging"]).state == "absent"
    assert all(change.action in ("create", "none") for change in reconciler.plan(entries["staging"]).changes)
    published.play("away")
    observed = reconciler.observe(entries["production"])
    assert (observed.state, observed.reason) == ("unknown", "flowctl catalog pull-specs: Estuary is away")
