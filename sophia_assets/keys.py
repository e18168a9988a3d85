"""Asset keys, groups and partitions: one naming for assets, checks, jobs and sensors."""

from __future__ import annotations

import dagster as dg

PLATFORM_KINDS = (
    "secrets",
    "environments",
    "nodes",
    "cluster",
    "images",
    "services",
    "estuary",
    "workflows",
    "frontends",
)
# Kind icons of the UI first, our own labels after.
ICONS: dict[str, set[str]] = {
    "images": {"docker"},
    "nodes": {"k3s", "gpu"},
    "cluster": {"kubernetes", "k3s"},
    "services": {"kubernetes", "yaml"},
    "secrets": {"secret", "yaml"},
    "environments": {"pulumi", "yaml"},
    "estuary": {"estuary", "yaml"},
    "workflows": {"n8n", "json"},
    "frontends": {"vercel", "json"},
}
# The tag by which a reported event carries a data version.
DATA_VERSION = "dagster/data_version"
STORE_ICONS = {"pgvector": {"postgres", "pgvector"}, "weaviate": {"weaviate"}, "pinecone": {"pinecone"}}


def asset_key(kind: str, name: str) -> dg.AssetKey:
    """`kind/name`, names as the catalog has them."""
    return dg.AssetKey([kind, name])


def shard_names(shards: int) -> list[str]:
    """Partition keys of an index: the shard's number in hexadecimal, so that they sort as the buckets do."""
    width = len(f"{shards - 1:x}")
    return [f"{number:0{width}x}" for number in range(shards)]


def shard_partitions(shards: int) -> dg.StaticPartitionsDefinition:
    """Hash-prefix partitions; never one a document."""
    return dg.StaticPartitionsDefinition(shard_names(shards))


def shard_number(partition: str) -> int:
    """The shard of a partition key."""
    return int(partition, 16)
