"""The HTTP API, version 1. It imports FastAPI, so the daemon imports it after it has adopted its machines."""
