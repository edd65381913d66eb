"""Byte streams that wrap a byte stream and change one thing about it."""
