"""The HTTP door: REST, events for browsers, and a description of both."""
