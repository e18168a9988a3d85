"""`make up` as a person uses it: the graph in a browser, a run by a click, a run from CI, a live change, Ctrl-C.

`SOPHIA_TEST_SCREENSHOTS=FOLDER` saves the pictures of the documentation.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import psutil
import psycopg
import pytest

from sophia.database import open_database
from sophia.local import dagster_environment
from sophia.settings import load_settings
from tests.e2e.conftest import ROOT, SERVER_STOP_SECONDS, Home
from tests.ports import free_port
from tests.waiting import until

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; run `pip install playwright`"
)
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCREENSHOTS = os.environ.get("SOPHIA_TEST_SCREENSHOTS")
# From the sources and images to two indexes: the whole idea on one page.
LINEAGE = '(2+key:"indexes/documents" or 2+key:"indexes/memory") and not group:"secrets"'
GROUPS = ("sources", "collections", "images", "cluster", "services", "indexes")
NODE = ["nodes", "sophia-production"]
INDEX = ["indexes", "documents"]
ROW = 1_234_567

pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not there; install chromium"),
    pytest.mark.timeout(900),
]


class Up:
    """A running `sophia up`."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.port, console = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = home.folder / "up.log"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sophia", "up", "--dagster-port", str(self.port), "--no-sample"],
                cwd=ROOT,
                env=home.environment | {"SOPHIA_CONSOLE__PORT": str(console)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ready(self) -> None:
        """Until the code location is loaded."""
        until(self._loaded, f"the Dagster UI; {self.output.read_text()}", 300)

    def _loaded(self) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        try:
            return bool(
                self.ask("{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }")[
                    "repositoriesOrError"
                ]["nodes"]
            )
        except (httpx.HTTPError, KeyError):
            return False

    def ask(self, query: str, **variables: Any) -> Any:
        response = httpx.post(f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60)
        response.raise_for_status()
        return response.json()["data"]

    def materializations(self, key: list[str], after: float) -> list[dict[str, Any]]:
        """Materializations of an asset since a time (seconds since 1970)."""
        found = self.ask(
            "query M($key: AssetKeyInput!, $after: String) { assetOrError(assetKey: $key) { ... on Asset { "
            "assetMaterializations(limit: 20, afterTimestampMillis: $after) { runId partition description } } } }",
            key={"path": key},
            after=str(int(after * 1000)),
        )
        return list(found["assetOrError"].get("assetMaterializations", []))

    def stop(self) -> None:
        """Ctrl-C, and the command's end."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(120)


@pytest.fixture(scope="module")
def up(home: Home) -> Iterator[Up]:
    up = Up(home)
    try:
        up.ready()
        yield up
    finally:
        if up.process.poll() is None:
            up.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, up: Up) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 2400, "height": 1500}, base_url=up.url)
    page.set_default_timeout(120_000)
    yield page
    page.close()


def test_the_graph_shows_groups_and_assets(page: Page) -> None:
    expanded = ",".join(f"global@global:{group}" for group in GROUPS)
    page.goto(f"/asset-groups~{quote(LINEAGE, safe='')}/?expanded={quote(expanded, safe='')}")
    graph = page.locator("foreignObject")
    for name in ("documents", "memory", "conversations", "sample", "indexer", "sophia-ai-main"):
        graph.get_by_text(name, exact=True).first.wait_for()
    # No dialog asks for anything before the first look.
    assert page.get_by_text("Join the Dagster community").count() == 0
    if SCREENSHOTS:
        for _ in range(5):
            page.locator("[aria-label=zoom_out]").first.click()
            page.wait_for_timeout(800)
        page.get_by_text("Loading").first.wait_for(state="hidden")
        page.wait_for_timeout(2_000)
        graph_only = {"x": 700, "y": 110, "width": 1600, "height": 1330}
        page.screenshot(path=Path(SCREENSHOTS) / "graph.png", clip=graph_only)


def test_a_click_materialises_and_the_page_shows_the_plan(page: Page, up: Up) -> None:
    began = time.time()
    page.goto(f"/assets/{'/'.join(NODE)}")
    page.get_by_role("button", name="Materialize").first.click()
    (event,) = until(lambda: up.materializations(NODE, began), "the materialization", 180)
    run = until(lambda: _ended(up, event["runId"]), "the run's end", 180)
    assert run == "SUCCESS"
    page.goto(f"/assets/{'/'.join(NODE)}")
    page.get_by_text("planned", exact=True).first.wait_for()
    page.get_by_text("desired_digest").first.wait_for()


def _ended(up: Up, run: str) -> str | None:
    found = up.ask("query R($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run)
    status = found["runOrError"]["status"]
    return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None


def test_ci_launches_a_run_and_waits_for_its_outcome(up: Up) -> None:
    settings = load_settings(home=up.home.folder)
    database = open_database(settings)
    environment = up.home.environment | dagster_environment(settings, database)
    run = str(uuid.uuid4())
    dagster = str(Path(sys.executable).parent / "dagster")
    launched = subprocess.run(
        [dagster, "job", "launch", "-w", "workspace.yaml", "-j", "plan_platform", "--run-id", run],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    database.release()
    assert launched.returncode == 0, launched.stderr
    waited = up.home.sophia("wait", run, "--url", up.url, "--timeout", "300")
    assert waited.returncode == 0, waited.stdout + waited.stderr
    assert waited.stdout.splitlines()[-1] == f"run {run}: SUCCESS"
    unknown = up.home.sophia("wait", run, "--url", f"{up.url}/nowhere", "--timeout", "1")
    assert unknown.returncode == 3


def test_a_committed_change_shows_in_the_graph(page: Page, up: Up) -> None:
    database = open_database(load_settings(home=up.home.folder))
    began = time.time()
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO public.documents (id, name, module, kind, title, body) "
            "VALUES (%s, 'live', 'live', 'live', 'live', 'a row that was committed in the running system')",
            [ROW],
        )
        until(lambda: _indexed(connection), "the row in the index")
    database.release()
    (event,) = until(lambda: up.materializations(INDEX, began), "the sensor's report", 180)
    assert event["description"] == "kept in step by the indexer"
    assert event["runId"] == ""
    page.goto(f"/assets/{'/'.join(INDEX)}")
    page.get_by_text("lag_p95_ms").first.wait_for()
    if SCREENSHOTS:
        page.set_viewport_size({"width": 1600, "height": 1000})
        page.get_by_text("Plots", exact=True).first.click()
        page.get_by_role("button", name="Events").first.click()
        page.wait_for_timeout(3_000)
        page.screenshot(path=Path(SCREENSHOTS) / "index.png")


def _indexed(connection: psycopg.Connection[Any]) -> bool:
    return bool(connection.execute("SELECT 1 FROM indexes.documents WHERE key = %s", [f"[{ROW}]"]).fetchone())


def test_ctrl_c_leaves_nothing_behind(up: Up) -> None:
    children = psutil.Process(up.process.pid).children(recursive=True)
    # Capture, indexer, console, Dagster's webserver and daemon with a code server each.
    assert len(children) >= 7
    up.stop()
    assert up.process.returncode == 0, up.output.read_text()
    assert up.output.read_text().splitlines()[-1] == "stopped"
    until(lambda: not _alive(children), "the end of all child processes", SERVER_STOP_SECONDS)
    until(lambda: not up.home.processes(), "the end of PostgreSQL and its watcher", SERVER_STOP_SECONDS)


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Without those that have ended and whose parent, outside our reach, has not looked yet."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
