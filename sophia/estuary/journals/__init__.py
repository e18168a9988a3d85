"""Estuary's journals: a collection read once more, as it was written."""
