"""The command `onward`."""
