"""The run log: the only code that knows Redis."""
