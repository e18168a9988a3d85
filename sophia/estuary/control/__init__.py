"""Estuary's control plane: what it says of itself, and what follows from it."""
