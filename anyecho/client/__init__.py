"""The client of an echo server, whose echo it verifies."""
