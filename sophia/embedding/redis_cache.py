"""The embedding cache in Redis. Entries that were not used for the catalog's `cache_days` expire there by themselves.

Keys are `sophia:embedding:{MODEL}:v:HASH` and `sophia:embedding:{MODEL}:epoch`; the braces keep a model's keys in one
slot of a cluster. Each access is one script, and Redis runs one script at a time: so no write comes between the look at
the epoch and the entries. A model without an epoch gets a random one, so that a Redis that was emptied never has an old
one again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sophia.catalog import default_path, load
from sophia.errors import ConfigurationError, TemporaryError
from sophia.settings import Settings

if TYPE_CHECKING:
    from redis import Redis

TIMEOUT_SECONDS = 1.0
# Keys of one step through all of them.
SCAN_KEYS = 1_000
_DAY = 86_400
_PREFIX = "sophia:embedding:"
# What entries that are no vectors, but results of functions, are kept under in place of a model's fingerprint.
RESULTS = "result:"

# KEYS: the epoch's, then the entries'. ARGV: an epoch for a model without, an entry's seconds to live, and how few
# seconds left mean that it was not used today.
_READ = """
local epoch = redis.call('GET', KEYS[1])
if not epoch then
    epoch = ARGV[1]
    redis.call('SET', KEYS[1], epoch)
end
local found = {epoch}
for i = 2, #KEYS do
    found[i] = redis.call('GET', KEYS[i])
    if found[i] and redis.call('TTL', KEYS[i]) < tonumber(ARGV[3]) then
        redis.call('EXPIRE', KEYS[i], ARGV[2])
    end
end
return found
"""
# KEYS as above. ARGV: the writer's epoch, an entry's seconds to live, the values.
_WRITE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
for i = 2, #KEYS do
    redis.call('SET', KEYS[i], ARGV[i + 1], 'EX', ARGV[2])
end
return 1
"""


class RedisCache:
    """Implements `VectorCache` with a Redis server.

    Args:
        client: with short time-outs, without retries, answering in bytes.
        days: how long an entry lives after its last use.
    """

    name = "Redis"

    def __init__(self, client: Redis, days: int) -> None:
        self._client: Any = client
        self._seconds = days * _DAY
        self._read = self._client.register_script(_READ)
        self._write = self._client.register_script(_WRITE)

    def epoch(self, model: str) -> str:
        """See `VectorCache.epoch`."""
        return self.read(model, ())[0]

    def read(self, model: str, keys: Sequence[bytes]) -> tuple[str, dict[bytes, bytes]]:
        """See `VectorCache.read`."""
        with _temporary():
            epoch, *values = self._read(
                keys=_keys(model, keys), args=[str(uuid4()), self._seconds, self._seconds - _DAY]
            )
        return epoch.decode(), {key: value for key, value in zip(keys, values, strict=True) if value is not None}

    def write(self, model: str, epoch: str, entries: Mapping[bytes, bytes]) -> None:
        """See `VectorCache.write`."""
        with _temporary():
            self._write(keys=_keys(model, entries), args=[epoch, self._seconds, *entries.values()])

    def check(self) -> None:
        """Raises TemporaryError if the server is not there."""
        with _temporary():
            self._client.ping()

    def erase(self, models: Sequence[str] | None) -> int:
        """Remove all vectors of these models, or of all if None, and see to it that nobody stores one of before.

        With them go all results of functions: any of them may have been made of the text, or even quote it. Returns how
        many of both. Takes a step through all keys of the server for each model.
        """
        with _temporary():
            removed = 0
            for model in [*models, f"{RESULTS}*"] if models is not None else ["*"]:
                # First, since a write behind the scan would stay. A model without an epoch gets a new one.
                self._unlink(_epoch_key(model))
                removed += self._unlink(_entry_key(model) + "*")
        return removed

    def _unlink(self, pattern: str) -> int:
        removed = 0
        batch: list[bytes] = []
        for key in self._client.scan_iter(match=pattern, count=SCAN_KEYS):
            batch.append(key)
            if len(batch) == SCAN_KEYS:
                removed += self._client.unlink(*batch)
                batch.clear()
        return removed + (self._client.unlink(*batch) if batch else 0)


def redis_cache(settings: Settings, days: int | None = None) -> RedisCache | None:
    """The cache in the Redis that the settings name, whether it is the one in use or not; None if they name none.

    Args:
        days: how long an entry lives after its last use; as the catalog says if None.

    Raises:
        ConfigurationError: the URL is malformed, or the client is not installed.
    """
    if settings.embedding.redis_url is None:
        return None
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise ConfigurationError("SOPHIA_EMBEDDING__REDIS_URL needs `pip install 'sophia-platform[redis]'`") from error
    try:
        client = redis.Redis.from_url(
            settings.embedding.redis_url.get_secret_value(),
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
            client_name="sophia-embedding-cache",
        )
    except ValueError as error:
        raise ConfigurationError("SOPHIA_EMBEDDING__REDIS_URL: must look like redis://host:port/number") from error
    return RedisCache(client, days or load(settings.catalog or default_path()).retention.cache_days)


def _keys(model: str, keys: Iterable[bytes]) -> list[bytes]:
    prefix = _entry_key(model).encode()
    return [_epoch_key(model).encode(), *(prefix + key for key in keys)]


def _epoch_key(model: str) -> str:
    return f"{_PREFIX}{{{model}}}:epoch"


def _entry_key(model: str) -> str:
    return f"{_PREFIX}{{{model}}}:v:"


@contextmanager
def _temporary() -> Iterator[None]:
    from redis import RedisError

    try:
        yield
    except RedisError as error:
        raise TemporaryError(f"its Redis: {error or type(error).__name__}") from error
