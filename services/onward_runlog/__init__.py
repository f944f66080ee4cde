"""The run log on Redis or Valkey: the only code that knows keys, functions and records."""
