"""Datagrams: echoed by the server, sent and received by the client."""
