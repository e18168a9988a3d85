"""Whose vectors a version may hold: what computes them is noted with the run, and compared with what did before.

A version may be fed by a backfill on a GPU and by a CPU that follows the changes, since neither is part of its
fingerprint. So that their vectors can be searched together, each backend embeds the same few texts when it opens a
version, and must agree with every backend that did so for this model, the bound being that of `fast`, for `exact`, too.
"""

from __future__ import annotations

import hashlib
import logging
from time import monotonic
from weakref import WeakKeyDictionary

import numpy as np
import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.embedding import Embedder, Vectors
from sophia.embedding.agreement import FAST, PROBES, Agreement
from sophia.errors import ConfigurationError, TemporaryError
from sophia.indexing.versions import IndexVersion

logger = logging.getLogger("sophia.indexing")
Connection = psycopg.Connection[TupleRow]
Q = sql.load("provenance")
_PROBES_HASH = hashlib.sha256("\0".join(PROBES).encode()).digest()
# Probed once a process, however many versions an embedder feeds.
_probed: WeakKeyDictionary[Embedder, Vectors] = WeakKeyDictionary()
# An indexer looks at a version that it may not feed each second, between its live work: an endpoint that refuses the
# account is asked this seldom.
ASK_AGAIN_SECONDS = 30.0
_refusals: WeakKeyDictionary[Embedder, tuple[float, str]] = WeakKeyDictionary()


def admit(connection: Connection, version: IndexVersion, embedder: Embedder, run: str) -> None:
    """Note what computes the version's vectors in this run, and check that it agrees with what did before.

    An endpoint that does not answer is not compared: it cannot write now, and is not asked again once it can.

    Raises:
        ConfigurationError: it does not agree, and both backends are named; or its endpoint refuses every text.
    """
    vectors = _vectors_of(embedder)
    params = {"model": version.model_fingerprint, "backend": embedder.backend, "run": run, "probes": _PROBES_HASH}
    with connection.transaction():
        if vectors is not None:
            connection.execute(Q["lock_probes"], params)
            for backend, stored in connection.execute(Q["probes"], params).fetchall():
                _compare(version, embedder, vectors, backend, stored)
            connection.execute(Q["store_probe"], params | {"vectors": vectors.astype("<f4").tobytes()})
        connection.execute(Q["note_backend"], params)


def _vectors_of(embedder: Embedder) -> Vectors | None:
    if embedder not in _probed:
        refused = _refusals.get(embedder)
        if refused is not None and monotonic() - refused[0] < ASK_AGAIN_SECONDS:
            raise ConfigurationError(refused[1])
        try:
            _probed[embedder] = embedder.probe(PROBES)
        except ConfigurationError as error:
            _refusals[embedder] = monotonic(), str(error)
            raise
        except TemporaryError as error:
            logger.warning("%s is not compared with other backends: %s", embedder.backend, error)
            return None
    return _probed[embedder]


def _compare(version: IndexVersion, embedder: Embedder, vectors: Vectors, backend: str, stored: bytes) -> None:
    theirs = np.frombuffer(stored, dtype="<f4").reshape(vectors.shape)
    agreement = Agreement.of(vectors, theirs)
    if version.index.precision == "int8":
        logger.warning("%s: %s and %s: %s", version.label, embedder.backend, backend, agreement)
    elif not agreement.cosine >= FAST:
        raise ConfigurationError(
            f"{version.label}: {embedder.backend!r} computes other vectors of model {version.model.name!r} than "
            f"{backend!r} did, with a smallest cosine of {agreement.cosine:.6f} where {FAST} is wanted; have both "
            "compute the same way (SOPHIA_DEVICE, SOPHIA_EMBEDDING__BACKEND), or give the model another `version`"
        )
