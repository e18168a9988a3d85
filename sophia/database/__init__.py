"""PostgreSQL: the embedded server of the local profile, connections, and the versioned schema."""

from sophia.database.connect import Database, open_database
from sophia.database.migrate import migrate

__all__ = ["Database", "migrate", "open_database"]
