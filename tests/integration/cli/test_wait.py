"""`sophia wait` against a webserver's stand-in: every outcome has its exit code, and nothing waits for ever."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sophia import waiting
from tests.integration.cli.conftest import Sophia

RUN = "0b8f8a52-0000-4000-8000-000000000000"


class Webserver:
    """Answers GraphQL with what is in `answers`, the last of them again and again."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.asked: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                code, body = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                self.send_response(code)
                self.end_headers()
                self.wfile.write(json.dumps({"data": {"runOrError": body}}).encode())

            def log_message(self, *arguments: Any) -> None:
                """Not into the test's output."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def says(self, *states: str, **tags: str) -> None:
        shown = [{"key": key.replace("__", "/"), "value": value} for key, value in tags.items()]
        self.answers = [(200, {"__typename": "Run", "status": state, "tags": shown}) for state in states]


@pytest.fixture
def webserver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webserver]:
    webserver = Webserver()
    monkeypatch.setattr(waiting.time, "sleep", _short(waiting.time.sleep))
    yield webserver
    webserver.server.shutdown()
    webserver.server.server_close()


def _short(sleep: Callable[[float], None]) -> Callable[[float], None]:
    return lambda seconds: sleep(min(seconds, 0.02))


@pytest.mark.parametrize(("outcome", "code"), [("SUCCESS", 0), ("FAILURE", 1), ("CANCELED", 1)])
def test_the_outcome_is_the_exit_code(sophia_command: Sophia, webserver: Webserver, outcome: str, code: int) -> None:
    webserver.says("QUEUED", "STARTED", "STARTED", outcome, sophia__reason="step: why")
    done = sophia_command("wait", RUN, "--url", webserver.url)
    assert done.code == code
    # Each state once, the reason with the outcome only.
    assert done.out.splitlines() == [
        f"run {RUN}: QUEUED",
        f"run {RUN}: STARTED",
        f"run {RUN}: {outcome} (step: why)",
    ]
    assert {request["variables"]["runId"] for request in webserver.asked} == {RUN}


def test_a_run_that_nobody_knows_ends_with_1(
    sophia_command: Sophia, webserver: Webserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_UNKNOWN_GRACE_SECONDS", 0.2)
    webserver.answers = [(200, {"__typename": "RunNotFoundError", "message": "none"})]
    done = sophia_command("wait", RUN, "--url", webserver.url)
    assert (done.code, "does not exist" in done.err) == (1, True)


def test_a_run_that_is_not_stored_yet_is_waited_for(sophia_command: Sophia, webserver: Webserver) -> None:
    webserver.says("SUCCESS")
    webserver.answers = [(200, {"__typename": "RunNotFoundError", "message": "none"}), *webserver.answers]
    assert sophia_command("wait", RUN, "--url", webserver.url).code == 0


def test_a_run_that_goes_on_ends_with_3_after_the_timeout(sophia_command: Sophia, webserver: Webserver) -> None:
    webserver.says("STARTED")
    done = sophia_command("wait", RUN, "--url", webserver.url, "--timeout", "0.2")
    assert done.code == 3
    assert "STARTED after 0.2 s; it goes on without us" in done.err


def test_a_hiccup_of_the_webserver_is_got_over(sophia_command: Sophia, webserver: Webserver) -> None:
    webserver.says("SUCCESS")
    webserver.answers = [(502, None), (200, None), *webserver.answers]
    assert sophia_command("wait", RUN, "--url", webserver.url).code == 0


def test_a_webserver_that_is_away_ends_with_3(sophia_command: Sophia, webserver: Webserver) -> None:
    webserver.server.shutdown()
    webserver.server.server_close()
    done = sophia_command("wait", RUN, "--url", webserver.url)
    assert done.code == 3
    assert f"the Dagster webserver at {webserver.url} does not answer" in done.err


def test_an_error_of_the_webserver_ends_with_1(sophia_command: Sophia, webserver: Webserver) -> None:
    webserver.answers = [(200, {"__typename": "PythonError", "message": "broken storage"})]
    done = sophia_command("wait", RUN, "--url", webserver.url)
    assert (done.code, "broken storage" in done.err) == (1, True)
