"""From current documents to what a store holds: text, versions, the indexer, repair, search, provenance."""
