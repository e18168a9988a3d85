"""Pinecone's control plane: which indexes there are, what they are like, and where they answer.

Asked by the `pinecone` package, which knows the shapes of its API's versions. The addresses are remembered for the
life of the process, until one turns out to be wrong.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

from sophia.errors import ConfigurationError, TemporaryError, UnreachableError
from sophia.settings import Settings

if TYPE_CHECKING:
    from pinecone import Pinecone
    from pinecone.models.indexes.index import IndexModel

METRIC = "cosine"
TIMEOUT_SECONDS = 10.0
# Until a new index takes requests.
CREATE_SECONDS = 120
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,43}[a-z0-9])?")


class PineconeControl:
    """Describes and makes indexes. Safe to use from several threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Pinecone | None = None
        self._hosts: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def key(self) -> str:
        """The API key.

        Raises:
            ConfigurationError: it is not set, or cannot be one.
        """
        secret = self._settings.pinecone_api_key
        key = secret.get_secret_value().strip() if secret is not None else ""
        if not key:
            raise ConfigurationError("Pinecone needs an API key: set SOPHIA_PINECONE_API_KEY")
        if not key.isascii() or not key.isprintable():
            raise ConfigurationError("SOPHIA_PINECONE_API_KEY has characters that no header takes; is it pasted whole?")
        return key

    def require(self, name: str, dimension: int) -> None:
        """Check that the index is there and fits; make it where the settings say in which cloud and region.

        Raises:
            ConfigurationError: it is missing or of another kind; the message says what to create.
            TemporaryError: Pinecone is away, or the index is not ready yet.
        """
        if not NAME.fullmatch(name):
            raise ConfigurationError(
                f"Pinecone takes no index name {name!r}: up to 45 lower-case letters, digits and dashes between them; "
                "change class_name in the catalog"
            )
        found = self._describe(name)
        if found is None:
            found = self._create(name, dimension)
        from pinecone.models.indexes.deployment import PodDeployment

        if isinstance(found.deployment, PodDeployment):
            raise ConfigurationError(
                f"Pinecone's index {name} is not serverless, so that its records cannot be listed; "
                "make a serverless one under another name and put that name into the catalog as class_name"
            )
        try:
            there = (found.dimension, found.metric)
        except AttributeError:
            there = (None, "none")
        if there != (dimension, METRIC):
            raise ConfigurationError(
                f"Pinecone's index {name} has dimension {there[0]} and metric {there[1]}; dimension {dimension} and "
                f"metric {METRIC} are needed: make another index and put its name into the catalog as class_name"
            )
        if not found.status.ready or not found.host:
            raise TemporaryError(f"Pinecone's index {name} is not ready yet ({found.status.state})")
        self._remember(name, found.host)

    def host(self, name: str) -> str:
        """Base URL of an index.

        Raises:
            ConfigurationError: there is no such index.
            TemporaryError: Pinecone is away, or the index is not ready yet.
        """
        with self._lock:
            known = self._hosts.get(name)
        if known is not None:
            return known
        found = self._describe(name)
        if found is None:
            raise ConfigurationError(
                f"Pinecone has no index {name}; start the indexer, which makes it or says what to make"
            )
        if not found.host:
            raise TemporaryError(f"Pinecone's index {name} has no address yet ({found.status.state})")
        return self._remember(name, found.host)

    def forget(self, name: str) -> None:
        """Ask for the index's address again: the index may have been made anew under its name."""
        with self._lock:
            self._hosts.pop(name, None)

    def close(self) -> None:
        """End the connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _remember(self, name: str, host: str) -> str:
        if host.startswith("http://") and not self._settings.pinecone_url.startswith("http://"):
            raise ConfigurationError(
                f"Pinecone says that index {name} answers without TLS, where the API key would be readable; "
                "check SOPHIA_PINECONE_URL"
            )
        with self._lock:
            self._hosts[name] = host.rstrip("/")
        return host.rstrip("/")

    def _connect(self) -> Pinecone:
        try:
            from pinecone import Pinecone, RetryConfig
        except ImportError as error:
            raise ConfigurationError("the package pinecone is missing: install sophia-platform[pinecone]") from error
        with self._lock:
            if self._client is None:
                self._client = Pinecone(
                    api_key=self.key,
                    host=self._settings.pinecone_url,
                    timeout=TIMEOUT_SECONDS,
                    retry_config=RetryConfig(max_retries=2, max_wait=2.0),
                )
            return self._client

    def _describe(self, name: str) -> IndexModel | None:
        client = self._connect()
        from pinecone.errors import NotFoundError, PineconeError

        try:
            return client.indexes.describe(name)
        except NotFoundError:
            return None
        except PineconeError as error:
            raise _translated(error) from error

    def _create(self, name: str, dimension: int) -> IndexModel:
        own = self._settings.pinecone
        if own.cloud is None or own.region is None:
            raise ConfigurationError(
                f"Pinecone has no index {name}: make a serverless one of dimension {dimension} with metric {METRIC}, "
                "or set SOPHIA_PINECONE__CLOUD and SOPHIA_PINECONE__REGION to have it made"
            )
        client = self._connect()
        from pinecone.errors import ConflictError, PineconeError

        try:
            return client.indexes.create(
                name=name,
                schema={"fields": {"_values": {"type": "dense_vector", "dimension": dimension, "metric": METRIC}}},
                deployment={"deployment_type": "managed", "cloud": own.cloud, "region": own.region},
                timeout=CREATE_SECONDS,
            )
        except ConflictError:
            # Another process was quicker.
            found = self._describe(name)
            if found is None:
                raise TemporaryError(f"Pinecone's index {name} is being made or deleted by someone else") from None
            return found
        except PineconeError as error:
            raise _translated(error) from error


def _translated(error: Exception) -> Exception:
    """An error of the package as one of ours, without its text: Pinecone's may quote what it was sent."""
    from pinecone.errors import ForbiddenError, PaymentRequiredError, UnauthorizedError

    status = getattr(error, "status_code", None)
    if isinstance(error, UnauthorizedError):
        return ConfigurationError(
            "Pinecone does not take the API key (HTTP 401): set SOPHIA_PINECONE_API_KEY to one of the index's project"
        )
    if isinstance(error, ForbiddenError | PaymentRequiredError):
        return ConfigurationError(
            f"Pinecone refuses (HTTP {status}): check the project's plan, quota and payment, and what its API key "
            "may do"
        )
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 429):
        return ConfigurationError(
            f"Pinecone refuses (HTTP {status}): check SOPHIA_PINECONE_URL, SOPHIA_PINECONE__CLOUD and "
            "SOPHIA_PINECONE__REGION"
        )
    # Its answers are about indexes: nothing of a record is under way.
    return UnreachableError(f"Pinecone's control plane does not answer ({type(error).__name__}); it is asked again")
