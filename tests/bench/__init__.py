"""How fast the suite is, beside a floor of the same processes without an engine. `python -m tests.bench`."""
