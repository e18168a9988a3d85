"""One ConfigurableResource a system: settings in, client out. What is heavy is imported when it is used."""

from resources.database import DatabaseResource
from resources.embedding import EmbeddingResource
from resources.estuary import EstuaryResource
from resources.platform import PlatformResource
from resources.profile import executor_of, resources_of

__all__ = [
    "DatabaseResource",
    "EmbeddingResource",
    "EstuaryResource",
    "PlatformResource",
    "executor_of",
    "resources_of",
]
