"""Estuary's catalog, made from ours: rendered, checked, compared with what is published, and published."""
