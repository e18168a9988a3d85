"""Vectors that come with documents: which are taken, how, and what is said of the others."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sophia.errors import DocumentError
from sophia.indexing.ready import UNIT, ReadyVectors

READY = ReadyVectors("embedding", 3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "is not in the row"),
        ({"embedding": None}, "list of numbers"),
        ({"embedding": "[1, 2, 3]"}, "list of numbers"),
        ({"embedding": {"0": 1}}, "list of numbers"),
        ({"embedding": [1, "2", 3]}, "list of numbers"),
        ({"embedding": [True, False, True]}, "list of numbers"),
        ({"embedding": [1, None, 3]}, "list of numbers"),
        ({"embedding": [[1, 2, 3]]}, "list of numbers"),
        ({"embedding": []}, "holds 0 numbers, and the index has 3 dimensions"),
        ({"embedding": [0.1] * 4_096}, "holds 4,096 numbers"),
        ({"embedding": [0, 0.0, -0.0]}, "without a direction"),
        ({"embedding": [float("inf"), 1, 1]}, "without a direction"),
        ({"embedding": [1e200, 1e200, 1e308]}, None),
        ({"embedding": [10**400, 1, 1]}, "without a direction"),
        ({"embedding": [float("nan"), 1, 1]}, "without a direction"),
        ({"embedding": [1e-320, 0, 0]}, None),
    ],
)
def test_what_is_no_vector_is_refused_without_its_values(row: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert np.linalg.norm(READY.of(row)) == pytest.approx(1)
        return
    with pytest.raises(DocumentError, match=message) as caught:
        READY.of(row)
    assert "0.1" not in str(caught.value)
    assert "1e" not in str(caught.value)


def test_a_unit_vector_is_kept_to_the_bit() -> None:
    """As JSON carries float32, and as it comes back."""
    vector = np.random.default_rng(1).standard_normal(384).astype(np.float32)
    vector /= np.linalg.norm(vector)
    row = {"embedding": json.loads(json.dumps([float(number) for number in vector]))}
    assert ReadyVectors("embedding", 384).of(row).tobytes() == vector.tobytes()


@given(st.lists(st.floats(-1e30, 1e30), min_size=3, max_size=3).filter(lambda v: float(np.linalg.norm(v)) > 1e-30))
def test_any_other_keeps_its_direction(numbers: list[float]) -> None:
    taken = READY.of({"embedding": numbers})
    assert taken.dtype == np.float32
    assert abs(float(np.linalg.norm(taken.astype(np.float64))) - 1) <= UNIT
    assert float(np.dot(taken, np.array(numbers) / np.linalg.norm(numbers))) == pytest.approx(1, abs=1e-5)
