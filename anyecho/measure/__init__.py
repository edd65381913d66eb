"""Numbers about somebody else's server, and the client that gets them."""
