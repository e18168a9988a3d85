"""What alerts of Estuary mean, and that its own words go no further than they should."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from graphql import GraphQLEnumType, build_schema

from sophia.estuary.control.alerts import ALERT_KINDS, alert_kind
from sophia.estuary.control.shapes import LONGEST_TEXT, Alert, plain
from sophia.estuary.control.verdicts import alert_line

SCHEMA = Path(__file__).parents[2] / "estuary_control" / "schema.graphql"


def test_every_type_of_alert_that_estuary_has_is_known() -> None:
    kinds = build_schema(SCHEMA.read_text()).type_map["AlertType"]
    assert isinstance(kinds, GraphQLEnumType)
    assert set(kinds.values) == set(ALERT_KINDS)


def test_a_type_that_is_new_is_taken_seriously() -> None:
    assert alert_kind("task_haunted").severity == "ERROR"


def test_what_stops_data_is_an_error_and_a_bill_is_a_warning() -> None:
    assert {alert_kind(kind).severity for kind in ("shard_failed", "data_movement_stalled")} == {"ERROR"}
    assert {alert_kind(kind).severity for kind in ("task_idle", "free_trial_ending")} == {"WARN"}


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("two\n  lines\tand tabs", "two lines and tabs"),
        ("mail ops@example.com, please", "mail …, please"),
        ("dial postgres://sophia:hunter2@192.0.2.1/app: refused", "dial postgres://…192.0.2.1/app: refused"),
        ("sent Bearer abc.def.ghi to it", "sent … to it"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.x rejected", "token … rejected"),
        (None, "None"),
    ],
)
def test_estuarys_words_are_one_line_without_addresses_and_credentials(said: str | None, shown: str) -> None:
    assert plain(said) == shown


def test_long_words_are_cut() -> None:
    assert len(plain("x" * 5_000)) == LONGEST_TEXT


def test_an_alert_without_words_says_what_it_means() -> None:
    alert = Alert(type="shard_failed", name="sophia/t", fired_at=datetime(2026, 11, 21, 10, tzinfo=UTC), text="")
    assert alert_line(alert) == (
        "shard_failed of sophia/t since 2026-11-21 10:00 UTC: the task fails again and again "
        "(read the task's logs in Estuary)"
    )
