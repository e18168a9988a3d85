"""Estuary Flow: its catalog, its documents, its control plane, and a stand-in of its webhook."""
