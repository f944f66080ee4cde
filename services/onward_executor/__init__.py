"""The Executor: runs workflows and appends their events."""
