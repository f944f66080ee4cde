"""Seeded chaos: random workflows on real processes that are killed, stopped and cut. `python -m tests.chaos`."""
