"""The Executor: runs workflows and appends their events to the run log."""
