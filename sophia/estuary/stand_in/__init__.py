"""A stand-in of Estuary: its capture of PostgreSQL and its webhook, for tests and for trying things."""
