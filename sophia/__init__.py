"""Sophia: an AI platform as one dependency graph.

The library holds no Dagster. Two paths call it: the hot path (capture, inbox, indexer: long-lived
processes that make a committed row searchable) and the cold path (repair, rebuild, promote: Dagster
runs). Nothing is implemented twice. `docs/architecture.md` shows the whole.
"""

__version__ = "0.1.0"
