"""Plans are pure data: empty when nothing is to do, printable, and honest about what is not known."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from sophia.platform import Observed, Rendered, make_plan
from sophia.platform.reconcile import files_digest, unified_diff


def test_digest_is_of_content_and_not_of_order() -> None:
    one = Rendered({"a": "1\n", "b": "2\n"})
    other = Rendered({"b": "2\n", "a": "1\n"})
    assert one.digest == other.digest
    assert list(other.files) == ["a", "b"]
    assert one.digest != Rendered({"a": "1\n", "b": "3\n"}).digest


def test_digest_keeps_path_and_text_apart() -> None:
    assert files_digest({"ab": "c"}) != files_digest({"a": "bc"})


def test_rendered_is_frozen() -> None:
    rendered = Rendered({"a": "1"})
    with pytest.raises(TypeError):
        rendered.files["a"] = "2"  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        rendered.files = {}  # type: ignore[misc]


def test_plan_is_empty_when_observed_equals_rendered() -> None:
    rendered = Rendered({"a": "1\n", "b": "2\n"})
    plan = make_plan("kind", "name", rendered, Observed("present", "there", files=dict(rendered.files)))
    assert plan.empty
    assert plan.diff() == ""
    assert plan.summary() == "kind/name: nothing to do"
    assert plan.counts() == {"create": 0, "update": 0, "delete": 0, "none": 2}


def test_plan_is_empty_when_only_the_digest_is_known_and_equal() -> None:
    rendered = Rendered({"a": "1\n"})
    assert make_plan("kind", "name", rendered, Observed("present", "there", digest=rendered.digest)).empty


def test_plan_has_one_change_a_file() -> None:
    rendered = Rendered({"new": "1\n", "changed": "2\n", "same": "3\n"})
    observed = Observed("present", "there", files={"changed": "0\n", "same": "3\n", "gone": "4\n"})
    plan = make_plan("kind", "name", rendered, observed)
    assert {change.target: change.action for change in plan.changes} == {
        "changed": "update",
        "gone": "delete",
        "new": "create",
        "same": "none",
    }
    assert plan.summary() == "kind/name: 1 to create, 1 to update, 1 to delete"


def test_present_with_another_digest_is_an_update() -> None:
    plan = make_plan("kind", "name", Rendered({"a": "1\n"}), Observed("present", "old", digest="0"))
    assert [change.action for change in plan.changes] == ["update"]


def test_unknown_is_not_absent_and_says_why() -> None:
    plan = make_plan("kind", "name", Rendered({"a": "1\n"}), Observed.unknown("nobody answered"))
    assert not plan.empty
    assert plan.summary() == "kind/name: 1 to create (not observed: nobody answered)"


def test_diff_is_unified() -> None:
    assert unified_diff("f", "a\nb\n", "a\nc\n") == "--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"
    assert unified_diff("f", "", "a\n").startswith("--- /dev/null\n+++ b/f\n")
    assert unified_diff("f", "a\n", "").startswith("--- a/f\n+++ /dev/null\n")
