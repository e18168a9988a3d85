"""The cocoindex arm's worker. It runs in cocoindex's own environment and imports nothing of Sophia.

As cocoindex's PostgreSQL example does it: a memoised function for each row, an embedding function that batches, and
a managed target table. Its PostgreSQL source reads the whole table in each update, so "live" is a loop of updates.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import asyncpg
import cocoindex as coco
import httpx
import numpy as np
from cocoindex.connectors import postgres
from cocoindex.resources.schema import VectorSchema
from numpy.typing import NDArray

POOL = coco.ContextKey[asyncpg.Pool]("pool")
# A batch belongs to no component, so it cannot ask the context for its client.
CLIENT = httpx.AsyncClient(base_url=os.environ["PEER_EMBEDDER_URL"], timeout=60)
RETRY_SECONDS = 0.2


@dataclass
class Document:
    """A source row."""

    id: int
    body: str
    views: int


@dataclass
class Indexed:
    """A target row."""

    id: int
    body: str
    views: int
    embedding: Annotated[NDArray[np.float32], VectorSchema(dtype=np.dtype(np.float32), size=384)]


@coco.lifespan
async def lifespan(builder: coco.EnvironmentBuilder) -> AsyncIterator[None]:
    """Connections for as long as the process lives."""
    async with asyncpg.create_pool(os.environ["PEER_DATABASE_URL"]) as pool:
        builder.provide(POOL, pool)
        yield


@coco.fn.as_async(batching=True, memo=True, max_batch_size=64)
async def embed(texts: list[str]) -> list[NDArray[np.float32]]:
    """Vectors of texts; calls that come together are one request."""
    response = await CLIENT.post("/v1/embeddings", json={"model": "hash", "input": texts})
    response.raise_for_status()
    return [np.array(item["embedding"], dtype=np.float32) for item in response.json()["data"]]


@coco.fn(memo=True)
async def index(document: Document, table: postgres.TableTarget[Indexed]) -> None:
    """One row's target state."""
    vector = await embed(document.body)
    table.declare_row(row=Indexed(document.id, document.body, document.views, vector))


@coco.fn
async def everything() -> None:
    """The whole table's target state."""
    table = await postgres.mount_table_target(
        POOL,
        table_name="documents_index",
        table_schema=await postgres.TableSchema.from_class(Indexed, primary_key=["id"]),
    )
    source = postgres.PgTableSource(coco.use_context(POOL), table_name="documents", row_type=Document)
    await coco.mount_each(index, source.fetch_rows().items(lambda row: row.id), table)


application = coco.App(coco.AppConfig(name="peers"), everything)


async def main() -> None:
    """Update again and again until told to stop; a fault is printed and tried again."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    while not stop.is_set():
        try:
            await application.update()
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), RETRY_SECONDS)


asyncio.run(main())
