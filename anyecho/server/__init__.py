"""The server: keeping peers alive, and apart."""
