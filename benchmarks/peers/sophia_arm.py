"""Sophia: its own capture and indexer processes, with a catalog of one collection and one index."""

from __future__ import annotations

from typing import Any

import yaml

from benchmarks.peers.arm import Arm
from sophia.database import open_database
from sophia.local import sophia_command
from sophia.services.supervisor import Child
from sophia.settings import load_settings

INDEX = "documents"


class SophiaArm(Arm):
    """`sophia capture` and `sophia indexer`."""

    name = "sophia"
    database = "sophia"
    TABLE = f"indexes.{INDEX}"
    KEY = "key"
    CONTENT = "content"
    # It waits for notifications; its heartbeats cost nothing, and a stopped holder would lose its lease.
    restless = False

    def prepare(self) -> None:
        """Write the catalog, bring the schema up to date."""
        folder = self.home / "catalog"
        folder.mkdir()
        for file, entries in self._catalog().items():
            (folder / f"{file}.yaml").write_text(yaml.safe_dump({file: entries}))
        open_database(load_settings(home=self.home)).release()

    def _catalog(self) -> dict[str, list[dict[str, Any]]]:
        described = {"name": INDEX, "description": "Short texts."}
        return {
            "sources": [{"name": "own", "description": "The same database.", "kind": "postgres", "url_env": None}],
            "collections": [
                {**described, "source": "own", "table": "public.documents", "estuary": "peers/documents"},
            ],
            "models": [
                {
                    **{"name": "hash", "description": "A function of the text's hash.", "version": "1"},
                    **{"provider": "openai", "url": f"{self.embedder_url}/v1", "model": "hash"},
                    **{"dimension": 384, "max_tokens": 512},
                }
            ],
            "indexes": [
                {
                    **described,
                    **{"collection": INDEX, "model": "hash", "template": "{body}", "chunk_tokens": 450},
                    **{"metadata": ["views"], "store": "pgvector"},
                }
            ],
        }

    def workers(self) -> list[Child]:
        """Capture and indexer."""
        environment = {"SOPHIA_HOME": str(self.home), "SOPHIA_CATALOG": str(self.home / "catalog")}
        return [self.child(name, sophia_command(name), **environment) for name in ("capture", "indexer")]

    def loaded(self) -> None:
        """Sophia makes the index itself; wait until it is built."""
        self.until(
            lambda: (
                self.reader.execute(
                    "SELECT 1 FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
                    "WHERE c.relnamespace = 'indexes'::regnamespace AND c.relname LIKE '%\\_hnsw' AND i.indisvalid"
                ).fetchone()
                is not None
            ),
            "the nearest-neighbour index",
            look=0.05,
        )

    def key(self, number: int) -> Any:
        """Canonical JSON of the key."""
        return f"[{number}]"

    def number(self, key: Any) -> int:
        """From canonical JSON."""
        return int(key[1:-1])
