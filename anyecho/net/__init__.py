"""All that knows a socket. Above this floor there are streams and addresses only."""
