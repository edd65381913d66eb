"""The client of an echo server. It compares every byte of the echo."""
