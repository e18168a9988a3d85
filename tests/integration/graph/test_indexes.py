"""Index assets: materialising repairs, embeds only what differs, and says what it did in numbers."""

from __future__ import annotations

from typing import Any

import dagster as dg
import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia.catalog import Catalog
from sophia.documents import bucket_range
from sophia.indexing.versions import active_versions
from sophia_assets.keys import asset_key
from tests.embedders import TOKENS_PER_SECOND
from tests.integration.graph.conftest import Graph

KEY = asset_key("indexes", "documents")
STABLE = {
    "state",
    "version",
    "dagster/row_count",
    "rows",
    "vectors",
    "chunks",
    "documents_written",
    "embedded",
    "reused",
    "deleted",
    "parked",
    "tokens",
    "tokens_per_s",
    "roofline_share",
    "padding_share",
    "cache_hits",
    "duplicates",
    "refused",
    "out_of_memory",
    "backend",
    "device",
    "budget",
    "embed_s",
    "seconds",
    "lag_ms",
}


def _keys_of_shard(connection: psycopg.Connection[TupleRow], shard: int) -> set[str]:
    first, last = bucket_range(shard, 16)
    return {
        row[0]
        for row in connection.execute("SELECT key FROM sophia.documents WHERE bucket BETWEEN %s AND %s", [first, last])
    }


def test_one_shard_holds_its_documents_and_no_others(graph: Graph) -> None:
    graph.put(*range(40))
    wanted = _keys_of_shard(graph.connection, 3)
    assert 0 < len(wanted) < 40
    graph.repair("3", "3")
    stored = {row[0] for row in graph.connection.execute("SELECT key FROM indexes.documents_v1")}
    assert stored == wanted
    assert graph.metadata(KEY)["embedded"] == len(wanted)
    assert graph.materialization(KEY).partition == "3"


def test_a_range_holds_everything_and_says_so(graph: Graph) -> None:
    graph.put(*range(40))
    result = graph.repair()
    events = result.asset_materializations_for_node("indexes__documents")
    assert sorted(event.partition for event in events if event.partition) == sorted("0123456789abcdef")
    found = graph.metadata(KEY)
    assert set(found) >= STABLE
    assert {name: found[name] for name in ("state", "rows", "vectors", "documents_written", "embedded", "parked")} == {
        "state": "repaired",
        "rows": 40,
        "vectors": 40,
        "documents_written": 40,
        "embedded": 40,
        "parked": 0,
    }
    assert found["dagster/row_count"] == 40
    assert found["tokens"] > 0
    assert found["tokens_per_s"] == TOKENS_PER_SECOND
    # Without an engine of ours there is no device.
    assert (found["backend"], found["device"], found["budget"], found["roofline_share"]) == ("hash", "remote", 0, 0.0)
    assert found["seconds"] >= found["embed_s"] >= 0
    assert all(evaluation.passed for evaluation in graph.checks(result).values())
    assert set(graph.checks(result)) == {"equals_source", "lag", "dead_letters"}


def test_the_run_says_how_far_it_is_and_what_is_left(
    graph: Graph, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that a batch holds about as much as four shards.
    monkeypatch.setenv("SOPHIA_INDEXER__BULK_DOCUMENTS", "10")
    graph.put(*range(40))
    graph.repair()
    lines = [line for line in capfd.readouterr().err.splitlines() if " shard " in line]
    assert len(lines) == 4
    assert "documents v1: shard 4/16" in lines[0]
    assert "100,000 tokens/s" in lines[0]
    assert " left" in lines[0]
    assert "shard 16/16, 40 documents written, 40 texts embedded" in lines[-1]
    assert " left" not in lines[-1]


def test_a_step_says_on_what_it_computed(graph: Graph) -> None:
    """With an engine of ours: its device and the tokens of a forward pass, as they are after the work."""

    class Engine:
        device: Any = "cuda"
        number = None
        budget_tokens = 65_536

        def flop_per_token(self, length: float) -> None:
            return None

    graph.embedder.engine = Engine()
    graph.embedder.backend = "torch 2.15.0 NVIDIA H200 bfloat16 packed"
    graph.put(1, 2)
    graph.repair()
    found = graph.metadata(KEY)
    assert (found["backend"], found["device"], found["budget"]) == (graph.embedder.backend, "cuda", 65_536)
    runs = graph.connection.execute("SELECT kind, backends FROM sophia.runs").fetchall()
    assert [(kind, list(backends.values())) for kind, backends in runs] == [("dagster", [[graph.embedder.backend]])]


def test_the_data_version_is_fingerprint_and_position(graph: Graph) -> None:
    graph.put(1, 2, 3)
    graph.repair()
    (version,) = active_versions(graph.connection)
    assert graph.data_version(KEY) == f"{version.fingerprint}:3"
    graph.repair()
    assert graph.data_version(KEY) == f"{version.fingerprint}:3"
    graph.put(4)
    graph.repair()
    assert graph.data_version(KEY) == f"{version.fingerprint}:4"


def test_materialising_again_embeds_nothing_and_keeps_the_keys(graph: Graph) -> None:
    graph.put(*range(10))
    graph.repair()
    first = graph.metadata(KEY)
    graph.embedder.texts.clear()
    result = graph.repair()
    again = graph.metadata(KEY)
    # The proof embeds a sample; the repair itself embeds nothing.
    assert (again["embedded"], again["documents_written"], again["tokens"]) == (0, 0, 0)
    assert set(first) == set(again)
    assert graph.checks(result)["equals_source"].passed


def test_only_changed_text_is_embedded(graph: Graph) -> None:
    graph.put(*range(10))
    graph.repair()
    graph.put(3, text="another")
    graph.delete(4)
    graph.repair()
    found = graph.metadata(KEY)
    assert (found["embedded"], found["deleted"], found["rows"]) == (1, 1, 9)


TAMPERED = {
    "a text was edited": ("UPDATE indexes.documents_v1 SET content = 'other' WHERE key = '[3]'", "altered"),
    "a vector was edited": ("UPDATE indexes.documents_v1 SET embedding = -1 * embedding WHERE key = '[3]'", "altered"),
    "a row was deleted": ("DELETE FROM indexes.documents_v1 WHERE key = '[3]'", "missing"),
    "a row was added": (
        "INSERT INTO indexes.documents_v1 (id, key, bucket, chunk, span, content, content_hash, embedding, metadata, "
        "clock, run) SELECT gen_random_uuid(), '[99]', bucket, chunk, span, content, content_hash, embedding, "
        "metadata, clock, run FROM indexes.documents_v1 WHERE key = '[3]'",
        "extra",
    ),
}


@pytest.mark.parametrize("tampering", TAMPERED)
def test_what_was_changed_behind_our_back_fails_the_check_and_is_mended(graph: Graph, tampering: str) -> None:
    statement, kind = TAMPERED[tampering]
    graph.put(*range(10))
    graph.repair()
    before = _contents(graph)
    statement = statement.replace("-1 * embedding", "(SELECT embedding FROM indexes.documents_v1 WHERE key = '[4]')")
    assert graph.connection.execute(statement).rowcount == 1

    (found,) = _check(graph, "equals_source")
    assert found.check_name == "equals_source"
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.ERROR
    assert found.blocking is not False
    assert found.metadata[kind].value == 1
    assert "DIFFERS" in (found.description or "")

    result = graph.repair()
    assert _contents(graph) == before
    assert graph.metadata(KEY)["embedded"] + graph.metadata(KEY)["reused"] <= 1
    assert graph.checks(result)["equals_source"].passed


def test_a_shallow_repair_trusts_the_ledger(graph: Graph) -> None:
    graph.put(*range(10))
    graph.repair()
    graph.connection.execute("DELETE FROM indexes.documents_v1 WHERE key = '[3]'")
    result = graph.repair(deep=False, succeeds=False)
    assert graph.metadata(KEY)["documents_written"] == 0
    assert not graph.checks(result)["equals_source"].passed


def _check(graph: Graph, *names: str) -> list[Any]:
    """Checks without a repair before, as `validate_platform` runs them."""
    resolved = graph.definitions.resolve_asset_graph()
    selection = dg.AssetSelection.checks(*(dg.AssetCheckKey(KEY, name) for name in names))
    result = (
        dg.define_asset_job("checks", selection=selection)
        .resolve(asset_graph=resolved)
        .execute_in_process(instance=graph.instance, resources=graph.definitions.resources, raise_on_error=False)
    )
    return list(result.get_asset_check_evaluations())


def _contents(graph: Graph) -> list[tuple[Any, ...]]:
    return graph.connection.execute(
        "SELECT key, chunk, content, embedding::text FROM indexes.documents_v1 ORDER BY key, chunk"
    ).fetchall()


def test_the_proof_blocks_what_comes_after(catalog: Catalog, graph: Graph) -> None:
    """An asset downstream of an index that differs is not materialised in the same run."""
    checks = graph.definitions.resolve_asset_graph()
    assert checks.get(dg.AssetCheckKey(KEY, "equals_source")).blocking
    assert not checks.get(dg.AssetCheckKey(KEY, "lag")).blocking


def test_a_parked_document_warns_and_is_counted(graph: Graph) -> None:
    graph.put(1, 2)
    graph.put(3, text="x" * 1_100_000)
    result = graph.repair()
    found = graph.checks(result)
    assert not found["dead_letters"].passed
    assert found["dead_letters"].severity is dg.AssetCheckSeverity.WARN
    assert found["dead_letters"].metadata["parked"].value == 1
    # A known gap is no difference.
    assert found["equals_source"].passed
    assert graph.metadata(KEY)["parked"] == 1


def test_a_backlog_without_an_indexer_fails_the_lag_check(graph: Graph) -> None:
    graph.put(1)
    graph.repair()
    graph.put(2)
    (found,) = _check(graph, "lag")
    assert not found.passed
    assert "sophia indexer" in (found.description or "")
    assert found.metadata["backlog"].value == 1


def test_an_index_without_a_store_here_is_planned(graph: Graph) -> None:
    key = asset_key("indexes", "conversation_search")
    job = dg.define_asset_job(
        "plan_only", selection=[key], partitions_def=graph.definitions.resolve_asset_graph().get(key).partitions_def
    ).resolve(asset_graph=graph.definitions.resolve_asset_graph())
    result = job.execute_in_process(
        instance=graph.instance, resources=graph.definitions.resources, partition_key="0", raise_on_error=False
    )
    assert result.success
    assert graph.metadata(key)["state"] == "planned"
    assert graph.data_version(key) == "planned"
    assert graph.connection.execute("SELECT count(*) FROM sophia.index_versions").fetchone() == (0,)


def test_a_step_that_failed_is_tried_again_and_finishes_the_work(graph: Graph) -> None:
    graph.put(*range(20))
    faults = [RuntimeError("the model is away")]

    def refuse(texts: Any) -> None:
        if faults:
            raise faults.pop()

    graph.embedder.before = refuse
    graph.repair()
    assert faults == []
    assert graph.metadata(KEY)["rows"] == graph.metadata(KEY)["vectors"] == 20


def test_a_run_answers_for_its_own_shards_only(graph: Graph) -> None:
    """The nightly repair is one run a shard: drift in one must not fail the fifteen others."""
    graph.put(*range(40))
    graph.repair()
    (key,) = graph.connection.execute(
        "SELECT key FROM sophia.documents WHERE bucket >= 4096 * 4 ORDER BY key LIMIT 1"
    ).fetchone() or ("",)
    assert graph.connection.execute("DELETE FROM indexes.documents_v1 WHERE key = %s", [key]).rowcount == 1
    result = graph.repair("0", "3")
    evaluation = graph.checks(result)["equals_source"]
    assert evaluation.passed
    assert "shards 0 to 3" in (evaluation.description or "")
    # The nightly repair and a backlog name one shard; a range of one is another tag.
    single = graph.run("repair_indexes", KEY, partition_key="0")
    assert graph.checks(single)["equals_source"].passed
    (whole,) = _check(graph, "equals_source")
    assert not whole.passed
