"""What may write a version: the backends of a model are compared, and noted with the run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from sophia.embedding import Vectors
from sophia.embedding.agreement import PROBES
from sophia.errors import ConfigurationError, TemporaryError
from sophia.indexing import backends
from sophia.indexing.backends import admit
from sophia.indexing.provenance import register_run
from sophia.indexing.repair import Session, repair_version
from sophia.indexing.status import why
from sophia.indexing.versions import IndexVersion
from sophia.settings import Settings
from tests.embedders import HashEmbedder
from tests.integration.library import Library
from tests.waiting import until

RunLoop = Callable[..., Any]
CPU, GPU = "torch 2.15.0 cpu float32 packed", "torch 2.15.0 NVIDIA H200 bfloat16 packed"


class Turned(HashEmbedder):
    """Its vectors differ from the hash embedder's by a cosine."""

    def __init__(self, cosine: float, backend: str) -> None:
        super().__init__(backend=backend)
        self.cosine = cosine

    def probe(self, texts: Sequence[str]) -> Vectors:
        right = super().probe(texts)
        across = np.roll(right, 1, axis=1)
        across -= right * (right * across).sum(axis=1, keepdims=True)
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        turned: Vectors = (self.cosine * right + np.sqrt(1 - self.cosine**2) * across).astype(np.float32)
        return turned


def stored(library: Library) -> list[tuple[Any, ...]]:
    return library.connection.execute(
        "SELECT backend, octet_length(vectors) FROM sophia.model_probes ORDER BY created_at, backend"
    ).fetchall()


def of_precision(library: Library, precision: str) -> IndexVersion:
    return library.version(library.with_index(precision=precision))


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("cosine", [1.0, 0.99985])
def test_backends_that_agree_feed_one_version(library: Library, precision: str, cosine: float) -> None:
    version = of_precision(library, precision)
    admit(library.connection, version, HashEmbedder(backend=CPU), "run")
    admit(library.connection, version, Turned(cosine, GPU), "run")
    size = len(PROBES) * version.dimension * 4
    assert stored(library) == [(CPU, size), (GPU, size)]


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("cosine", [0.99975, 0.5, float("nan")])
def test_one_that_does_not_agree_is_refused_by_name(library: Library, precision: str, cosine: float) -> None:
    version = of_precision(library, precision)
    admit(library.connection, version, HashEmbedder(backend=CPU), "run")
    with pytest.raises(ConfigurationError) as refused:
        admit(library.connection, version, Turned(cosine, GPU), "run")
    message = str(refused.value)
    assert CPU in message
    assert GPU in message
    assert "SOPHIA_EMBEDDING__BACKEND" in message
    assert [backend for backend, _ in stored(library)] == [CPU]
    # And the first goes on.
    admit(library.connection, version, HashEmbedder(backend=CPU), "run")


def test_int8_is_told_and_not_refused(library: Library, caplog: pytest.LogCaptureFixture) -> None:
    version = of_precision(library, "int8")
    admit(library.connection, version, HashEmbedder(backend=CPU), "run")
    with caplog.at_level(logging.WARNING, "sophia.indexing"):
        admit(library.connection, version, Turned(0.9, GPU), "run")
    assert "smallest cosine 0.9000" in caplog.text
    assert len(stored(library)) == 2


def test_every_backend_is_compared_with_all_that_came_before(library: Library) -> None:
    """Each agrees with its neighbour, the first and the last do not."""
    version = library.version()
    step = np.cos(np.arccos(0.9998) * 0.9)
    admit(library.connection, version, Turned(float(np.cos(0)), "one"), "run")
    admit(library.connection, version, Turned(float(step), "two"), "run")
    with pytest.raises(ConfigurationError, match="'one'"):
        admit(library.connection, version, Turned(float(np.cos(2 * np.arccos(step))), "three"), "run")


def test_a_backend_is_compared_with_its_own_past(library: Library) -> None:
    """The name stays and the vectors change: other arithmetic of another processor, another model at an endpoint."""
    version = library.version()
    admit(library.connection, version, HashEmbedder(backend="endpoint text-small"), "run")
    with pytest.raises(ConfigurationError, match="'endpoint text-small' did"):
        admit(library.connection, version, Turned(0.99, "endpoint text-small"), "run")


def test_probing_costs_one_embedding_a_process(library: Library) -> None:
    embedder = library.embedder
    for _ in range(3):
        admit(library.connection, library.version(), embedder, "run")
    admit(library.connection, of_precision(library, "fast"), embedder, "run")
    assert embedder.probes == list(PROBES)
    assert embedder.texts == []
    assert embedder.figures.texts == 0


def test_other_probes_are_not_compared_with(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release may bring other texts; what was stored of the old ones means nothing then."""
    version = library.version()
    admit(library.connection, version, HashEmbedder(backend=CPU), "run")
    with monkeypatch.context() as newer:
        newer.setattr(backends, "PROBES", ("another", "text"))
        newer.setattr(backends, "_PROBES_HASH", b"another hash")
        admit(library.connection, version, HashEmbedder(backend=GPU), "run")
        admit(library.connection, version, HashEmbedder(backend=CPU), "run")
        with pytest.raises(ConfigurationError):
            admit(library.connection, version, Turned(0.5, "third"), "run")
    assert stored(library) == [(GPU, 2 * 384 * 4), (CPU, 2 * 384 * 4)]


def test_of_two_that_come_at_once_the_second_is_compared(library: Library) -> None:
    version = library.version()
    gate = threading.Barrier(2)
    refused: list[ConfigurationError] = []

    def come(embedder: HashEmbedder) -> None:
        with library.database.connect() as connection:
            gate.wait(60)
            try:
                admit(connection, version, embedder, "run")
            except ConfigurationError as error:
                refused.append(error)

    for _ in range(5):
        library.connection.execute("DELETE FROM sophia.model_probes")
        refused.clear()
        # Probed before, so that both meet at the database.
        embedders = [HashEmbedder(backend=CPU), Turned(0.5, GPU)]
        backends._probed.update({each: each.probe(PROBES) for each in embedders})
        threads = [threading.Thread(target=come, args=(each,)) for each in embedders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(refused) == len(stored(library)) == 1


def test_an_endpoint_that_is_away_is_compared_next_time(library: Library, caplog: pytest.LogCaptureFixture) -> None:
    class Away(HashEmbedder):
        def probe(self, texts: Sequence[str]) -> Vectors:
            raise TemporaryError("the endpoint does not answer")

    admit(library.connection, library.version(), Away(backend="endpoint text-small"), "run")
    assert stored(library) == []
    assert "is not compared with other backends" in caplog.text


def test_an_endpoint_that_refuses_the_account_is_not_asked_all_the_time(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Locked(HashEmbedder):
        def probe(self, texts: Sequence[str]) -> Vectors:
            super().probe(texts)
            raise ConfigurationError("the endpoint refuses with 401")

    locked = Locked(backend="endpoint text-small")
    for seconds, asked in ((60, 1), (60, 1), (0, 2)):
        monkeypatch.setattr(backends, "ASK_AGAIN_SECONDS", seconds)
        with pytest.raises(ConfigurationError, match="refuses with 401"):
            admit(library.connection, library.version(), locked, "run")
        assert len(locked.probes) == asked * len(PROBES)


# ---- who asks ----------------------------------------------------------------------------------------------


def session(library: Library, embedder: HashEmbedder, run: str) -> Session:
    return Session.open(
        library.connection, library.catalog, library.index, "local", lambda _: embedder, library.settings, run=run
    )


def test_a_backfill_and_the_hot_path_feed_one_version(library: Library, settings: Settings, run_loop: RunLoop) -> None:
    for number in range(5):
        library.put(number, body=f"text {number}", bulk=True)
    run = register_run(library.connection, "dagster", settings, run="a-backfill")
    opened = session(library, Turned(0.9999, GPU), run)
    assert repair_version(library.connection, opened, range(2), batch=10, deep=False).embedded == 5
    library.embedder.backend = CPU
    run_loop(library.indexer())
    library.put(9, body="live")
    library.level()
    assert [backend for backend, _ in stored(library)] == [GPU, CPU]
    assert library.embedder.texts == ["t\n\nlive"], "probes are not counted among what was embedded"
    for key, backend in (("3", GPU), ("9", CPU)):
        assert why(library.connection, "documents", key)["backend"] == backend


def test_a_backfill_that_does_not_agree_writes_nothing(library: Library, settings: Settings) -> None:
    library.put(1)
    session(library, library.embedder, "live")
    with pytest.raises(ConfigurationError, match="other vectors of model 'minilm'"):
        session(library, Turned(0.9, GPU), "backfill")
    assert library.connection.execute("SELECT count(*) FROM sophia.ledger").fetchone() == (0,)


def test_an_indexer_leaves_only_the_version_that_it_computes_otherwise(
    library: Library, run_loop: RunLoop, caplog: pytest.LogCaptureFixture
) -> None:
    other = library.version(library.with_index(template="{body}", precision="fast"))
    version = library.version()
    admit(library.connection, version, Turned(0.9, GPU), "run")
    running = run_loop(library.indexer())
    library.put(1, body="text")
    library.level(other)
    until(lambda: "not indexing" in caplog.text, "the refusal")
    assert library.stored(version) == []
    # Once, however often it looks.
    assert caplog.text.count("not indexing documents v2") == 1
    # And is back as soon as the reason is gone.
    library.connection.execute("DELETE FROM sophia.model_probes")
    library.level(version)
    running.stop()


# ---- what is noted -----------------------------------------------------------------------------------------


def test_a_run_notes_each_backend_once(library: Library, settings: Settings) -> None:
    run = register_run(library.connection, "dagster", settings, run="steps-on-two-hosts")
    version, fast = library.version(), of_precision(library, "fast")
    for _ in range(2):
        admit(library.connection, version, HashEmbedder(backend=CPU), run)
        admit(library.connection, version, HashEmbedder(backend=GPU), run)
        admit(library.connection, fast, HashEmbedder(backend=GPU), run)
    row = library.connection.execute("SELECT backends FROM sophia.runs WHERE run = %s", [run]).fetchone()
    assert row == ({version.model_fingerprint: [CPU, GPU], fast.model_fingerprint: [GPU]},)


def test_backend_and_device_are_no_part_of_the_fingerprint(library: Library) -> None:
    version = library.version()
    session(library, HashEmbedder(backend=CPU), "one")
    session(library, HashEmbedder(backend=GPU), "two")
    assert library.connection.execute("SELECT id FROM sophia.index_versions").fetchall() == [(version.id,)]
