"""A stand-in for Pinecone on loopback, which exists only as a cloud service.

It speaks the REST API of Pinecone's control and data plane as documented for version 2026-07 and enforces the limits
that Pinecone documents. Records live in memory. Its switches make it slow to show writes, busy, or away.
"""

from tests.pinecone_stand_in.server import API_KEY, StandIn

__all__ = ["API_KEY", "StandIn"]
