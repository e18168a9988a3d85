"""The chaos test: random SQL, random faults, then quiet; then the index must equal `embed(current rows)`, row by row.

`driver` runs rounds on a PostgreSQL server of its own; capture, indexer, repairs and promotions are real processes,
forked by `zygote` and running `workers`. `workload` makes the changes, `faults` what goes wrong, and `oracle` is the
judge: it imports nothing of Sophia. `make chaos` is the long run, `test_chaos.py` the short one of every `make test`.
"""
