"""Many vectors as one parameter: PostgreSQL's binary form of `vector[]`, made by numpy in one go.

Item by item, by the adapter of pgvector, this is a third of what the indexer computes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.rows import TupleRow

from sophia.embedding.base import Vectors

_HEADER = struct.Struct(">iiiii")


class VectorArray:
    """Vectors of one dimension, to be sent as `vector[]` by a binary placeholder (`%(name)b`)."""

    def __init__(self, vectors: Sequence[Vectors]) -> None:
        self.values = np.stack(vectors)

    def encode(self, element_oid: int) -> bytes:
        """Dimensions, null flag, element type, length, lower bound; then each vector with its size in bytes."""
        count, dimension = self.values.shape
        rows = np.zeros(
            count, dtype=[("size", ">i4"), ("dimension", ">u2"), ("unused", ">u2"), ("values", ">f4", (dimension,))]
        )
        rows["size"] = 4 + 4 * dimension
        rows["dimension"] = dimension
        rows["values"] = self.values
        return _HEADER.pack(1, 0, element_oid, count, 1) + rows.tobytes()


def register_vector_array(connection: psycopg.Connection[TupleRow]) -> None:
    """Teach a connection, to which pgvector's types are registered, to send a `VectorArray`."""
    info = connection.adapters.types["vector"]

    class VectorArrayDumper(Dumper):
        format = Format.BINARY
        oid = info.array_oid

        def dump(self, obj: VectorArray) -> bytes:
            return obj.encode(info.oid)

    connection.adapters.register_dumper(VectorArray, VectorArrayDumper)
