"""Ask the kernel for the destination address of datagrams (IP_PKTINFO of ip(7), IPV6_RECVPKTINFO of ipv6(7))."""

from __future__ import annotations

__all__ = ("PKTINFO", "enable_pktinfo")

import logging
import socket
import sys

logger = logging.getLogger("anyecho.server")

#: Python's socket module has it since 3.14.
_IP_PKTINFO: int = getattr(socket, "IP_PKTINFO", 8 if sys.platform == "linux" else -1)
_IPV6_PKTINFO: int = getattr(socket, "IPV6_PKTINFO", -1)
_IPV6_RECVPKTINFO: int = getattr(socket, "IPV6_RECVPKTINFO", -1)
#: Address family -> level and type of the control message.
PKTINFO = {
    socket.AF_INET: (socket.IPPROTO_IP, _IP_PKTINFO),
    socket.AF_INET6: (socket.IPPROTO_IPV6, _IPV6_PKTINFO),
}


def enable_pktinfo(sock: socket.socket) -> bool:
    """Make the kernel report the destination of each datagram. If it cannot, log a warning and return False."""
    level = PKTINFO[sock.family][0]
    option = _IP_PKTINFO if sock.family == socket.AF_INET else _IPV6_RECVPKTINFO
    try:
        if option >= 0:
            sock.setsockopt(level, option, 1)
            return True
    except OSError:
        pass

    logger.warning("cannot enable IP_PKTINFO: replies may leave from another address than the client sent to")
    return False
