"""The PostgreSQL behind an Estuary capture: its rows, read again where a delivery does not tell what became of them."""
