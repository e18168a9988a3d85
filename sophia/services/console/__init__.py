"""The console: one page that shows every index, searches it, and proves where a result came from.

`create_app` makes the ASGI application, `serve` runs it. It reads the database and never writes to it.
"""

from sophia.services.console.app import create_app, serve

__all__ = ["create_app", "serve"]
