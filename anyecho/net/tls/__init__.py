"""TLS over readiness: sessions without a socket, streams, contexts."""
