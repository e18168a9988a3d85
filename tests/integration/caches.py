"""The two stores of the embedding cache, each on a real server that a test may stop, silence and look into."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import psycopg
import redis

from sophia.database import Database
from sophia.embedding.cache import VectorCache
from sophia.embedding.postgres_cache import PostgresCache, erase_vectors
from sophia.embedding.redis_cache import RedisCache, redis_cache
from sophia.errors import TemporaryError
from sophia.settings import Settings, load_settings
from tests.waiting import until

DAYS = 90


class Stand(Protocol):
    """One store of the cache, with what a test does to it."""

    def settings(self, home: Path) -> Settings:
        """Settings that name this store."""
        ...

    def cache(self) -> VectorCache:
        """A client of its own."""
        ...

    def entries(self, model: str) -> dict[bytes, bytes]:
        """What is stored."""
        ...

    def corrupt(self, model: str, value: bytes) -> None:
        """Put this value in place of every vector."""
        ...

    def erase(self, models: list[str] | None) -> int:
        """As an erasure does."""
        ...

    def age(self, model: str, days: int) -> None:
        """As if every entry had been used for the last time so many days ago."""
        ...

    def unused_days(self, model: str) -> set[int]:
        """Days since the last use, of all entries."""
        ...

    def down(self) -> None:
        """Whoever asks is refused."""
        ...

    def up(self) -> None:
        """Back, with what was stored."""
        ...

    def silence(self) -> Callable[[], None]:
        """Keep connections and answer nothing, until what is returned is called."""
        ...

    def fill(self) -> None:
        """Take nothing more."""
        ...


class PostgresStand:
    """`sophia.embedding_cache` of the test's database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection = database.connect("stand")
        self._down = False

    def settings(self, home: Path) -> Settings:
        return load_settings(home=home, database_url=self._database.url, embedding={"cache": "postgres"})

    def cache(self) -> VectorCache:
        def url() -> str:
            if self._down:
                return "postgresql://127.0.0.1:1/none"
            return self._database.url

        return PostgresCache(url)

    def entries(self, model: str) -> dict[bytes, bytes]:
        return dict(
            self._connection.execute(
                "SELECT text_hash, vector FROM sophia.embedding_cache WHERE model = %s", [model]
            ).fetchall()
        )

    def corrupt(self, model: str, value: bytes) -> None:
        self._connection.execute("UPDATE sophia.embedding_cache SET vector = %s WHERE model = %s", [value, model])

    def erase(self, models: list[str] | None) -> int:
        return erase_vectors(self._connection, models)[0]

    def age(self, model: str, days: int) -> None:
        self._connection.execute(
            "UPDATE sophia.embedding_cache SET used_on = current_date - %s WHERE model = %s", [days, model]
        )

    def unused_days(self, model: str) -> set[int]:
        rows = self._connection.execute(
            "SELECT DISTINCT current_date - used_on FROM sophia.embedding_cache WHERE model = %s", [model]
        )
        return {days for (days,) in rows}

    def down(self) -> None:
        self._down = True
        self._clients("pg_terminate_backend(pid)")

    def up(self) -> None:
        self._down = False

    def silence(self) -> Callable[[], None]:
        pids = [pid for (pid,) in self._clients("pid")]
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

        def speak() -> None:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

        return speak

    def fill(self) -> None:
        self._connection.execute("ALTER TABLE sophia.embedding_cache ADD CHECK (false) NOT VALID")

    def close(self) -> None:
        self._connection.close()

    def _clients(self, expression: Any) -> list[tuple[int]]:
        return self._connection.execute(
            f"SELECT {expression} FROM pg_stat_activity "
            "WHERE application_name = 'sophia-embedding-cache' AND datname = current_database()"
        ).fetchall()


class RedisStand:
    """A Redis server of the test's own, on a socket, that keeps what it was told over a restart."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = f"unix://{folder}/redis.sock"
        self.client = redis.Redis.from_url(self.url)
        self._process: subprocess.Popen[bytes] | None = None
        self.up()

    @staticmethod
    def installed() -> bool:
        return shutil.which("redis-server") is not None

    def settings(self, home: Path) -> Settings:
        return load_settings(home=home, embedding={"cache": "redis", "redis_url": self.url})

    def cache(self) -> RedisCache:
        made = redis_cache(self.settings(self._folder))
        assert made is not None
        return made

    def entries(self, model: str) -> dict[bytes, bytes]:
        found = {}
        for key in self._keys(model):
            value = self.client.get(key)
            assert isinstance(value, bytes)
            found[key[-32:]] = value
        return found

    def corrupt(self, model: str, value: bytes) -> None:
        for key in self._keys(model):
            self.client.set(key, value, keepttl=True)

    def erase(self, models: list[str] | None) -> int:
        return self.cache().erase(models)

    def age(self, model: str, days: int) -> None:
        for key in self._keys(model):
            self.client.expire(key, (DAYS - days) * 86_400)

    def unused_days(self, model: str) -> set[int]:
        lives: list[Any] = [self.client.ttl(key) for key in self._keys(model)]
        assert all(0 < life <= DAYS * 86_400 for life in lives)
        return {int(DAYS - life / 86_400) for life in lives}

    def down(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def up(self) -> None:
        places = ["--port", "0", "--unixsocket", f"{self._folder}/redis.sock", "--dir", str(self._folder)]
        durable = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self._process = subprocess.Popen(["redis-server", *places, *durable, "--logfile", f"{self._folder}/log"])
        until(self._answers, "the Redis server")

    def silence(self) -> Callable[[], None]:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        return lambda: self._process.send_signal(signal.SIGCONT) if self._process is not None else None

    def fill(self) -> None:
        self.client.config_set("maxmemory", "1")

    def close(self) -> None:
        self.client.close()
        self.down()

    def _keys(self, model: str) -> list[bytes]:
        return list(self.client.scan_iter(match=f"sophia:embedding:{{{model}}}:v:*"))

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False


class BrokenCache:
    """Fails always, and counts how often it was asked."""

    name = "nothing"

    def __init__(self) -> None:
        self.asked = 0

    def epoch(self, model: str) -> str:
        self.asked += 1
        raise TemporaryError("away")

    def read(self, model: str, keys: Any) -> Any:
        return self.epoch(model)

    def write(self, model: str, epoch: str, entries: Any) -> None:
        self.epoch(model)


def waits_for_a_lock(connection: psycopg.Connection[Any], application: str) -> bool:
    """Whether a session of that name waits for another one's lock."""
    return bool(
        connection.execute(
            "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock' "
            "AND datname = current_database()",
            [application],
        ).fetchone()
    )
