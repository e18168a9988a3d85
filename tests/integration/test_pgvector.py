"""What the store does beneath its contract: vectors in binary form, and a table that writers need at the same time."""

from __future__ import annotations

import numpy as np
import pytest
from pgvector.psycopg import register_vector

from sophia.stores import PgvectorStore
from sophia.stores.binary import VectorArray, register_vector_array
from tests.integration.library import Connection, Library


@pytest.mark.parametrize(("count", "dimension"), [(1, 1), (1, 384), (2, 3), (700, 24)])
def test_vectors_travel_in_binary_unchanged(connection: Connection, count: int, dimension: int) -> None:
    """Each one, in its order, to the bit; as pgvector's own adapter would send it."""
    register_vector(connection)
    register_vector_array(connection)
    values = np.random.default_rng(7).standard_normal((count, dimension)).astype(np.float32)
    values[0, 0] = np.float32(1e-30)
    query = (
        "SELECT array_length(%(vectors)b::vector[], 1), v FROM unnest(%(vectors)b::vector[]) WITH ORDINALITY u (v, n)"
    )
    rows = connection.execute(query + " ORDER BY n", {"vectors": VectorArray(list(values))}).fetchall()
    assert [row[0] for row in rows] == [count] * count
    one_by_one = [connection.execute("SELECT %s::vector", [vector]).fetchone()[0] for vector in values[:5]]  # type: ignore[index]
    for (_, read), sent in zip(rows, values, strict=True):
        assert (
            np.asarray(getattr(read, "to_numpy", lambda read=read: read)(), dtype=np.float32).tobytes()
            == sent.tobytes()
        )
    assert [str(row[1]) for row in rows[:5]] == [str(vector) for vector in one_by_one]


def test_vectors_of_two_dimensions_are_no_array() -> None:
    with pytest.raises(ValueError, match="same shape"):
        VectorArray([np.zeros(3, np.float32), np.zeros(4, np.float32)])


def test_store_that_is_there_is_not_locked(library: Library) -> None:
    """An index that is being built holds this very lock for minutes, and would deadlock with who wants the table."""
    version = library.version()
    library.connection.execute("SET lock_timeout = '300ms'")
    with library.database.connect("builder") as builder, builder.transaction():
        builder.execute(f"LOCK TABLE indexes.{version.store_name} IN SHARE UPDATE EXCLUSIVE MODE")
        PgvectorStore().ensure(library.connection, version)
