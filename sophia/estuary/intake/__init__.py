"""What Estuary delivers, on its way into the inbox."""
