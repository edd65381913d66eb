"""The echo client, and measurements of an echo server."""
