"""Results that were computed before, in Redis: what a function answers follows from its body and the models alone.

Invariants, each with a test:

* A result answers only for the body that it was computed from, as checked, and for the same function, models and code.
* A Redis that is away, slow or full makes no request fail. It is left alone for a while, and that is said once.
* Results are made of texts, a summary even quotes them. They live for `result_days`, and every erasure removes all of
  them; what was computed from a text that was erased meanwhile is not stored, since the erasure has changed the epoch.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import orjson
from pydantic import BaseModel
from starlette.responses import Response

from sophia.embedding.cache import PAUSE_SECONDS, Attempts, VectorCache
from sophia.embedding.redis_cache import RESULTS, redis_cache
from sophia.indexing.provenance import code_version
from sophia.services.inference.errors import CrowdedError
from sophia.services.inference.threads import OneThread
from sophia.settings import Settings

# A larger answer costs more to keep than to compute.
MOST_BYTES = 256 * 1024
_HEADERS = {"Cache-Control": "no-store"}


class Results:
    """Keeps answers of functions.

    Args:
        cache: owned by this.
        depends: names, versions and fingerprints of all that answers depend on beside the body.

    Attributes:
        counted: requests by (path, "hit" or "miss").
    """

    def __init__(self, cache: VectorCache, depends: Sequence[str], pause: float = PAUSE_SECONDS) -> None:
        self._cache = cache
        self._model = RESULTS + hashlib.blake2b("\n".join(depends).encode(), digest_size=16).hexdigest()
        self._reading = Attempts("cache of results", cache.name, "answer", pause)
        self._writing = Attempts("cache of results", cache.name, "take results", pause)
        self._thread = OneThread("results")
        self._writes: set[asyncio.Task[None]] = set()
        self.counted: Counter[tuple[str, str]] = Counter()

    async def answer(
        self, path: str, asked: BaseModel, compute: Callable[[], Coroutine[Any, Any, Response]]
    ) -> Response:
        """The kept answer to this body, or the one that `compute` gives, which is kept then."""
        if self._reading.paused:
            return await compute()
        key = _key(path, asked)
        try:
            found = await self._thread.run(self._read, key)
        except CrowdedError:
            return await compute()
        if found is None:
            return await compute()
        epoch, value = found
        if value is not None:
            self.counted[path, "hit"] += 1
            return Response(value, headers=_HEADERS, media_type="application/json")
        self.counted[path, "miss"] += 1
        response = await compute()
        body = bytes(response.body)
        if response.status_code == 200 and len(body) <= MOST_BYTES and not self._writing.paused:
            # Nobody waits for it.
            task = asyncio.create_task(self._keep(epoch, key, body))
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)
        return response

    def close(self) -> None:
        """Give up what is not kept yet."""
        self._thread.close()

    def _read(self, key: bytes) -> tuple[str, bytes | None] | None:
        # Whoever waited while another found it silent need not find out, too.
        if self._reading.paused:
            return None
        found = self._reading.attempt(partial(self._cache.read, self._model, [key]))
        return None if found is None else (found[0], found[1].get(key))

    async def _keep(self, epoch: str, key: bytes, body: bytes) -> None:
        write = partial(self._cache.write, self._model, epoch, {key: body})
        try:
            await self._thread.run(self._writing.attempt, write)
        except CrowdedError:
            return


def open_results(settings: Settings, depends: Sequence[str]) -> Results | None:
    """The results that the settings' Redis keeps; None if they name none, or say that none are kept.

    Raises:
        ConfigurationError: its URL is malformed, or no client is installed.
    """
    days = settings.inference.result_days
    cache = redis_cache(settings, days) if days else None
    return None if cache is None else Results(cache, [settings.code_version or code_version(), *depends])


def _key(path: str, asked: BaseModel) -> bytes:
    # What was not said may change what is done, so a default is not the same as its value.
    body = orjson.dumps([path, asked.model_dump(mode="json", exclude_unset=True)], option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(body, digest_size=32).digest()
