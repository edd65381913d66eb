"""The echo server: listeners, connections, limits and engines."""
