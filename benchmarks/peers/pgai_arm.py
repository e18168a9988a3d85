"""pgai's vectorizer: row triggers fill a queue, a worker polls it."""

from __future__ import annotations

from benchmarks.peers.arm import Arm
from benchmarks.peers.installs import binaries, run
from sophia.services.supervisor import Child

CREATE = """
SELECT ai.create_vectorizer(
    'public.documents'::regclass,
    loading => ai.loading_column('body'),
    destination => ai.destination_table('documents_embedding'),
    embedding => ai.embedding_openai('hash', 384, base_url => {url}),
    chunking => ai.chunking_none(),
    formatting => ai.formatting_python_template('$chunk'),
    indexing => ai.indexing_none(),
    scheduling => ai.scheduling_none())
"""


class PgaiArm(Arm):
    """The queue's worker, polling each second."""

    name = "pgai"
    TABLE = "public.documents_embedding_store"
    CONTENT = "chunk"
    cycle = 1.0

    def prepare(self) -> None:
        """Install its SQL, make the vectorizer: that queues the rows that are there."""
        python = binaries(self.name) / "python"
        self.writer.execute("CREATE EXTENSION vector")
        run([python, "-m", "pgai", "install", "-d", self.url], {})
        self.writer.execute(CREATE.format(url=f"'{self.embedder_url}/v1'"))

    def workers(self) -> list[Child]:
        """The worker."""
        command = [binaries(self.name) / "python", "-m", "pgai", "vectorizer", "worker"]
        command += ["-d", self.url, "--poll-interval", "1s", "--log-level", "WARN"]
        return [self.child("pgai", command, OPENAI_API_KEY="none", TIKTOKEN_CACHE_DIR=str(self.home / "tiktoken"))]
