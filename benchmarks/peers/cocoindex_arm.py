"""cocoindex: `App.update()` in a loop; its state is a file beside the worker."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.arm import Arm
from benchmarks.peers.installs import binaries
from sophia.services.supervisor import Child


class CocoindexArm(Arm):
    """One process that scans the source again and again."""

    name = "cocoindex"
    TABLE = "public.documents_index"
    CONTENT = "body"
    cycle = 0.3

    def prepare(self) -> None:
        """Have it installed; it makes its table itself."""
        binaries(self.name)

    def workers(self) -> list[Child]:
        """The loop."""
        command = [binaries(self.name) / "python", Path(__file__).parent / "cocoindex_flow.py"]
        return [
            self.child(
                "cocoindex",
                command,
                PEER_DATABASE_URL=self.url,
                PEER_EMBEDDER_URL=self.embedder_url,
                COCOINDEX_DB=str(self.home / "state"),
            )
        ]
