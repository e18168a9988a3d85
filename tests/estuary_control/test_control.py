"""The client of Estuary's control plane: what it reads, and what it says when it cannot."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from sophia.errors import ConfigurationError, TemporaryError
from sophia.estuary.control import client
from sophia.estuary.control.client import ControlPlane
from sophia.settings import EstuarySettings
from tests.estuary_control.answers import Answer
from tests.estuary_control.plane import TOKEN, Plane, Spec

CAPTURE = "sophia/postgres/source-postgres"
WEBHOOK = "sophia/sophia-intake"
CONVERSATIONS = "sophia/conversations"
# Each question, by name.
ASK: dict[str, Callable[[ControlPlane], Any]] = {
    "metrics": lambda plane: plane.metrics("sophia/"),
    "alerts": lambda plane: plane.alerts("sophia/"),
    "liveSpecs": lambda plane: plane.live_specs("sophia/"),
    "status": lambda plane: plane.status([CAPTURE]),
}
every_question = pytest.mark.parametrize("what", list(ASK))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between attempts, which are noted and not waited for."""
    pauses: list[float] = []
    monkeypatch.setattr(client, "sleep", pauses.append)
    return pauses


@pytest.fixture
def known(estuary: Plane) -> Plane:
    """A capture, a collection and a webhook with figures."""
    estuary.specs += [
        Spec(CAPTURE, "capture", summary="streaming"),
        Spec(CONVERSATIONS, "collection", schema_hash="d41d8c", written_by=(CAPTURE,), read_by=(WEBHOOK,)),
        Spec(WEBHOOK, "materialization", "0a1b2c3d4e5f6072", health="ERROR", summary="webhook failed"),
    ]
    estuary.binding(CAPTURE, CONVERSATIONS, "captured", 1200)
    estuary.binding(WEBHOOK, CONVERSATIONS, "materialized", 1100, 1795255200.25)
    estuary.sample("logged_errors_total", 4, task=WEBHOOK)
    estuary.sample("logged_failures_total", 2, task=WEBHOOK)
    estuary.sample("usage_seconds_total", 99, task=WEBHOOK)
    return estuary


def _ask(plane: Plane, what: str, **settings: Any) -> Any:
    with ControlPlane(plane.settings(**settings)) as client:
        return ASK[what](client)


# ---- what it reads -------------------------------------------------------------------------------------------


def test_metrics_are_totals_of_collections_tasks_and_bindings(known: Plane) -> None:
    metrics = _ask(known, "metrics")
    captured, webhook = metrics.of(CONVERSATIONS)
    assert (captured.task, captured.role, captured.docs, captured.bytes) == (CAPTURE, "captured", 1200, 120_000)
    assert (webhook.role, webhook.docs, webhook.published_at) == ("materialized", 1100, 1795255200.25)
    assert metrics.collections[CONVERSATIONS].written_docs == 1200
    assert (metrics.tasks[WEBHOOK].errors, metrics.tasks[WEBHOOK].failures) == (4, 2)


def test_live_specs_have_state_publication_and_neighbours(known: Plane) -> None:
    specs, whole = _ask(known, "liveSpecs")
    collection, capture, webhook = specs
    assert whole
    assert (collection.name, collection.kind, collection.schema_hash) == (CONVERSATIONS, "collection", "d41d8c")
    assert (collection.written_by, collection.read_by) == ((CAPTURE,), (WEBHOOK,))
    assert (capture.health, capture.summary, capture.schema_hash, capture.written_by) == ("OK", "streaming", None, ())
    assert (webhook.health, webhook.publication) == ("ERROR", "0a1b2c3d4e5f6072")


def test_a_spec_that_the_token_may_not_read_is_passed_over(known: Plane) -> None:
    known.specs.append(Spec("sophia/other", "collection", readable=False))
    assert "sophia/other" not in {spec.name for spec in _ask(known, "liveSpecs")[0]}


def test_status_is_that_of_the_controllers(known: Plane) -> None:
    with ControlPlane(known.settings()) as client:
        webhook, capture = client.status([WEBHOOK, CAPTURE])
    assert (webhook.name, webhook.health, webhook.error, webhook.failures) == (WEBHOOK, "error", "webhook failed", 3)
    assert (capture.health, capture.error, capture.disabled) == ("ok", None, False)


def test_active_alerts_have_estuarys_text_and_nobodys_address(known: Plane) -> None:
    known.fire("shard_failed", CAPTURE, "shard failed:\n  connector exited; mail to ops@example.com")
    known.fire("data_movement_stalled", WEBHOOK, "task has not moved data in the last 2h", evaluation_interval="2h")
    known.fire("task_idle", CAPTURE, "idle")
    known.resolve("task_idle", CAPTURE)
    (failed, stalled), whole = _ask(known, "alerts")
    assert whole
    assert (failed.type, failed.name, failed.text) == (
        "shard_failed",
        CAPTURE,
        "shard failed: connector exited; mail to …",
    )
    assert stalled.text == "task has not moved data in the last 2h"
    assert "example.com" not in f"{failed!r}{stalled!r}"


def test_every_page_of_alerts_is_read_though_estuary_pages_them_backwards(known: Plane) -> None:
    for number in range(250):
        known.fire("shard_failed", f"sophia/task-{number}", "x", f"2026-11-21T10:{number % 60:02}:{number // 60:02}Z")
    alerts, whole = _ask(known, "alerts")
    assert whole
    assert len({alert.name for alert in alerts}) == len(alerts) == 250
    assert known.requests == ["POST /api/graphql"] * 3


def test_every_page_of_specs_is_read_up_to_a_limit(known: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    known.specs = [Spec(f"sophia/c{number:04}", "collection") for number in range(200)]
    specs, whole = _ask(known, "liveSpecs")
    assert (len(specs), whole) == (200, True)
    monkeypatch.setattr(client, "MOST_SPEC_PAGES", 1)
    specs, whole = _ask(known, "liveSpecs")
    assert (len(specs), whole) == (100, False)


def test_alerts_beyond_the_limit_are_not_all(known: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MOST_ALERT_PAGES", 1)
    for number in range(101):
        known.fire("shard_failed", f"sophia/task-{number}", "x")
    alerts, whole = _ask(known, "alerts")
    assert (len(alerts), whole) == (100, False)


# ---- what passes by itself -----------------------------------------------------------------------------------


@every_question
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_estuary_is_asked_again(known: Plane, quick: list[float], what: str, status: int) -> None:
    known.faults += [Answer(status, b"later", {"Retry-After": "0.5"}), Answer(status, b"later")]
    assert _ask(known, what)
    assert len(known.requests) == 3
    assert quick[0] == 0.5
    assert len(quick) == 2


@every_question
def test_attempts_end(known: Plane, what: str) -> None:
    known.faults += [Answer(503, b"secret page")] * client.ATTEMPTS
    with pytest.raises(TemporaryError, match=f"Estuary's {what}: it answers 503") as error:
        _ask(known, what)
    assert len(known.requests) == client.ATTEMPTS
    assert "secret" not in str(error.value)


def test_a_pause_longer_than_the_question_may_take_is_not_waited_for(known: Plane, quick: list[float]) -> None:
    known.faults.append(Answer(429, b"", {"Retry-After": "3600"}))
    with pytest.raises(TemporaryError, match="answers 429"):
        _ask(known, "alerts")
    assert quick == []


def test_graphql_that_fails_inside_is_asked_again(known: Plane) -> None:
    fault = b'{"data":null,"errors":[{"message":"pool timed out","path":["alerts"]}]}'
    known.faults.append(Answer(200, fault))
    assert _ask(known, "alerts") == ([], True)
    known.faults += [Answer(200, fault)] * client.ATTEMPTS
    with pytest.raises(TemporaryError, match="it cannot say now: pool timed out"):
        _ask(known, "alerts")


@every_question
def test_an_answer_that_ends_short_is_not_believed(known: Plane, what: str) -> None:
    known.faults += [Answer(200, b'{"data":', length=900)] * client.ATTEMPTS
    with pytest.raises(TemporaryError, match="does not answer: RemoteProtocolError"):
        _ask(known, what)


def test_metrics_without_their_end_are_not_believed(known: Plane) -> None:
    """Cut between two lines, where nothing else would show it: what is missing would count as 0."""
    whole = known.metrics_text()
    for cut in (whole.removesuffix("# EOF\n"), whole[: whole.index("materialized_in_docs_total{") + 40]):
        known.faults.append(Answer(200, cut.encode()))
        with pytest.raises(TemporaryError, match="cut off"):
            _ask(known, "metrics")


@pytest.mark.parametrize("what", ["alerts", "liveSpecs", "status"])
def test_json_without_its_end_is_not_believed(known: Plane, what: str) -> None:
    known.faults += [Answer(200, b'[{"catalog_name": "sophia')] * client.ATTEMPTS
    with pytest.raises(TemporaryError, match="cut off"):
        _ask(known, what)


def test_nobody_at_the_address_is_temporary_and_says_where(known: Plane) -> None:
    known.close()
    with pytest.raises(TemporaryError, match=rf"{known.url} does not answer: ConnectError"):
        _ask(known, "metrics")


@every_question
def test_a_silent_estuary_costs_no_more_than_the_time_of_a_question(known: Plane, what: str) -> None:
    held = threading.Event()
    known.faults += [Answer(200, b" ", between=lambda: held.wait(30) and None)] * client.ATTEMPTS
    try:
        with pytest.raises(TemporaryError, match=r"timed out|no answer in time"):
            _ask(known, what, timeout_seconds=0.2)
    finally:
        held.set()


def test_an_answer_that_drips_is_cut_off(known: Plane) -> None:
    """Each byte comes within httpx's time-out; all of them take too long."""
    drip = threading.Event()
    known.faults.append(Answer(200, b" " * 100, between=lambda: drip.wait(0.05) and None))
    try:
        with pytest.raises(TemporaryError, match="comes too slowly"):
            _ask(known, "alerts", timeout_seconds=0.5)
    finally:
        drip.set()


def test_all_questions_of_a_look_share_its_time(known: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LOOK_SECONDS", 0.0)
    with pytest.raises(TemporaryError, match="no answer in time"):
        _ask(known, "alerts")
    assert known.requests == []


# ---- what a person must change ---------------------------------------------------------------------------------


@every_question
def test_an_unknown_token_is_named_with_the_fix_and_not_shown(known: Plane, what: str) -> None:
    with pytest.raises(ConfigurationError, match=r"401.*make a new one and set SOPHIA_ESTUARY__TOKEN") as error:
        _ask(known, what, token=SecretStr("hunter2"))
    assert "hunter2" not in f"{error.value!r}{error.value.__cause__!r}"
    assert len(known.requests) == 1


def test_a_token_that_may_not_read_the_prefix_is_named_with_the_fix(known: Plane) -> None:
    known.tokens[TOKEN] = "elsewhere/"
    with pytest.raises(ConfigurationError, match=r"403.*grant its account read on SOPHIA_ESTUARY__PREFIX"):
        _ask(known, "metrics")
    # GraphQL says so with 200.
    for what in ("alerts", "liveSpecs"):
        with pytest.raises(ConfigurationError, match=r"not authorized.*what it may read of SOPHIA_ESTUARY__PREFIX"):
            _ask(known, what)


def test_a_name_that_is_not_published_is_named(known: Plane) -> None:
    with ControlPlane(known.settings()) as client, pytest.raises(ConfigurationError, match=r"404: not published.*nope"):
        client.status([CAPTURE, "sophia/nope"])


@pytest.mark.parametrize("what", ["metrics", "alerts", "liveSpecs"])
def test_another_server_at_the_address_is_named_with_the_fix(known: Plane, what: str) -> None:
    with pytest.raises(ConfigurationError, match=r"404: there is no such page: SOPHIA_ESTUARY__URL"):
        _ask(known, what, url=f"{known.url}/elsewhere")


@every_question
@pytest.mark.parametrize("body", [b"<html>sign in</html>", b"\xff\xfe\x00", b"", b'"text"', b"17"])
def test_another_page_at_the_address_is_named_with_the_fix(known: Plane, what: str, body: bytes) -> None:
    known.faults.append(Answer(200, body))
    with pytest.raises(ConfigurationError, match="SOPHIA_ESTUARY__URL must be the control plane's"):
        _ask(known, what)


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":{}}',
        b'{"data":{"alerts":null}}',
        b'{"data":{"alerts":{"edges":[]}}}',
        b'{"data":{"alerts":{"edges":[{"cursor":"c"}],"pageInfo":{"hasPreviousPage":false}}}}',
        b'{"data":{"alerts":{"edges":[{"cursor":"c","node":{}}],"pageInfo":{"hasPreviousPage":false}}}}',
        b'{"data":{"alerts":{"edges":[{"cursor":1,"node":{}}],"pageInfo":{"hasPreviousPage":false}}}}',
    ],
)
def test_json_of_another_shape_is_named_with_the_fix(known: Plane, body: bytes) -> None:
    known.faults.append(Answer(200, body))
    with pytest.raises(ConfigurationError, match="not of the form that Estuary documents"):
        _ask(known, "alerts")


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1"])
def test_metrics_that_are_no_totals_are_refused(known: Plane, value: str) -> None:
    known.faults.append(Answer(200, f'written_to_me_docs_total{{collection="sophia/c"}} {value}\n# EOF\n'.encode()))
    with pytest.raises(ConfigurationError, match="written_to_me_docs_total is"):
        _ask(known, "metrics")


@every_question
def test_a_larger_answer_than_allowed_is_not_kept(known: Plane, what: str) -> None:
    known.faults.append(Answer(200, b" " * 70_000))
    with pytest.raises(ConfigurationError, match=r"more than 2000 bytes; narrow SOPHIA_ESTUARY__PREFIX or raise"):
        _ask(known, what, max_response_bytes=2_000)


def test_a_compressed_answer_is_not_unpacked(known: Plane) -> None:
    known.faults.append(Answer(200, b"x", {"Content-Encoding": "gzip"}))
    with pytest.raises(ConfigurationError, match="compressed, which was not asked for"):
        _ask(known, "alerts")


@every_question
def test_the_token_is_not_carried_elsewhere(known: Plane, what: str) -> None:
    known.faults.append(Answer(302, b"", {"Location": f"{known.url}/elsewhere"}))
    with pytest.raises(ConfigurationError, match=r"302.*where the token does not go: set SOPHIA_ESTUARY__URL"):
        _ask(known, what)
    assert len(known.requests) == 1


def test_a_question_that_estuary_does_not_know_says_so(known: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ALERTS", client.ALERTS.replace("firedAt", "firedOn"))
    with pytest.raises(ConfigurationError, match=r"does not take the question.*firedOn.*update Sophia"):
        _ask(known, "alerts")


def test_without_a_token_nothing_is_asked() -> None:
    with pytest.raises(ConfigurationError, match="SOPHIA_ESTUARY__TOKEN is not set"):
        ControlPlane(EstuarySettings())


@pytest.mark.parametrize("token", ["two\nlines", "nul\x00", "ümlaut"])
def test_a_token_that_is_none_is_refused_before_it_is_sent(known: Plane, token: str) -> None:
    with pytest.raises(ConfigurationError, match="characters that no token has") as error:
        ControlPlane(known.settings(token=SecretStr(token)))
    assert token not in str(error.value)


def test_a_token_goes_over_tls_only_except_on_this_machine() -> None:
    with pytest.raises(ValidationError, match="must be https"):
        EstuarySettings(url="http://estuary.example.com")
    assert EstuarySettings(url="https://estuary.example.com").url == "https://estuary.example.com"
