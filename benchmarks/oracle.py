"""What an index must hold, computed from the source without Sophia's code, and whether it does."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
from pgvector.psycopg import register_vector

from benchmarks.hash_endpoint import vector
from benchmarks.installation import INDEX, content

Connection = psycopg.Connection[Any]
AGREEMENT = 0.9998
LOOKS_EXACT = f"""
SELECT count(*) FROM (SELECT '[' || id || ']' AS key, title || E'\\n\\n' || body AS content FROM public.documents) d
FULL JOIN indexes.{INDEX} i ON i.key = d.key
WHERE i.content IS DISTINCT FROM d.content
"""


def looks_exact(connection: Connection) -> bool:
    """Whether keys and texts agree: one cheap query, asked until it does."""
    row = connection.execute(LOOKS_EXACT).fetchone()
    return row is not None and row[0] == 0


def differences(connection: Connection) -> dict[str, int]:
    """Numbers of rows by what is wrong with them, vectors and metadata included; all 0 at rest. Hash embedder only."""
    if connection.adapters.types.get("vector") is None:
        register_vector(connection)
    rows = connection.execute("SELECT id, title, body, module, kind FROM public.documents").fetchall()
    wanted = {f"[{row[0]}]": (content(row[1], row[2]), {"module": row[3], "kind": row[4]}) for row in rows}
    found = dict.fromkeys(("missing", "extra", "stale", "doubled", "metadata", "vector"), 0)
    seen = set()
    for key, text, embedding, metadata in connection.execute(
        f"SELECT key, content, embedding, metadata FROM indexes.{INDEX}"
    ):
        if key not in wanted:
            found["extra"] += 1
            continue
        found["doubled"] += key in seen
        seen.add(key)
        found["stale"] += text != wanted[key][0]
        found["metadata"] += metadata != wanted[key][1]
        values = np.asarray(embedding.to_numpy() if hasattr(embedding, "to_numpy") else embedding, dtype=np.float32)
        found["vector"] += float(values @ vector(wanted[key][0])) < AGREEMENT
    found["missing"] = len(wanted.keys() - seen)
    return found
