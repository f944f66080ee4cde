"""The Scheduler: which run goes where and when."""
