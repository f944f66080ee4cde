"""The Gateway: the public door."""
