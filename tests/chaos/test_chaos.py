"""The short run: the same driver as `make chaos`, with a fixed seed."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.chaos.driver import Driver
from tests.chaos.embedder import ChaosEmbedder
from tests.chaos.faults import KINDS
from tests.chaos.oracle import AGREEMENT, cosine, covers, vector_of
from tests.chaos.points import ELSEWHERE, POINTS, named_in_code
from tests.chaos.tables import MODELS

SEED = "short"
# One of each kind.
ROUNDS = len(KINDS)
STEPS = 9


def test_every_failpoint_is_known_and_exists() -> None:
    assert named_in_code() == {*POINTS, *ELSEWHERE}


def test_the_oracle_and_the_embedder_derive_the_same_vectors_apart() -> None:
    texts = ["", "one", "Müller 東京", "x" * 1_000]
    for model in MODELS:
        vectors = ChaosEmbedder(model).embed(texts)
        for text, vector in zip(texts, vectors.tolist(), strict=True):
            assert cosine(vector, vector_of(text, model)) > AGREEMENT
            assert cosine(vector, vector_of(text + ".", model)) < AGREEMENT


@pytest.mark.parametrize(
    ("pieces", "right"),
    [
        (["a" * 200, "b" * 200], True),
        (["b" * 200, "a" * 200], False),
        (["a" * 200], False),
        (["a" * 200, "b" * 199], False),
        (["a" * 200, "b" * 200, "b" * 200], False),
        (["a" * 200 + " " + "b" * 200], False),
    ],
)
def test_the_oracle_wants_chunks_to_make_up_the_text(pieces: list[str], right: bool) -> None:
    assert covers(pieces, "a" * 200 + " \n" + "b" * 200) is right


@pytest.mark.timeout(600)
def test_index_equals_source_after_random_faults() -> None:
    faults: Counter[str] = Counter()
    kills: Counter[str] = Counter()
    with Driver(SEED) as driver:
        for number in range(ROUNDS):
            outcome = driver.round(number, STEPS, bulk=0.05)
            assert not outcome.losses, "\n".join([f"round {number} of seed {SEED}: {outcome.losses}", *outcome.log])
            assert outcome.rows > 0
            faults += outcome.faults
            kills += outcome.kills
        hits = driver.processes.hits
    assert sum(faults.values()) + sum(hits.values()) >= 30
    assert sum(kills.values()) >= 15
    print(f"{dict(faults)}\nkills {dict(kills)}\nhits {dict(hits)}")
