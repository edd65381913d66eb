"""The phases of a connection."""

from __future__ import annotations

__all__ = ("CLOSED", "CLOSING", "HANDSHAKE", "HEADER", "OPEN", "Phase")

from enum import IntEnum


class Phase(IntEnum):
    """The phases of a connection, in their order. A connection may skip some; it never goes back."""

    HEADER = 0  #: The PROXY header is incomplete. If none is expected, the phase ends at once.
    HANDSHAKE = 1  #: The TLS handshake is incomplete.
    OPEN = 2  #: Bytes are echoed.
    CLOSING = 3  #: Nothing more is echoed; the connection lingers.
    CLOSED = 4  #: The socket is closed, and the close reason is counted.


# Members by name: an attribute of an enum class costs 0.2 us on Python 3.11.
HEADER, HANDSHAKE, OPEN, CLOSING, CLOSED = Phase
