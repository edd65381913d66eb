"""What a server opens before it accepts: checked options, certificates, listening sockets."""

from __future__ import annotations

__all__ = ("check_upstream", "open_sockets")

from collections.abc import Sequence
from contextlib import ExitStack

from anyecho.address import Address, FDAddress, StreamAddress, parse_address
from anyecho.handlers import Handler
from anyecho.net.listen import Listener, open_listeners
from anyecho.net.own_address import check_not_own
from anyecho.net.tls.contexts import Certificates
from anyecho.server.options import ServeOptions
from anyecho.server.unused import check_options


async def open_sockets(
    addresses: Sequence[str | Address], options: ServeOptions, handler: Handler, opened: ExitStack
) -> tuple[list[Listener], Certificates | None]:
    """Check all, then listen on `addresses`; return the listeners, and the certificates if an address is over TLS.

    `opened` closes them. Raises the errors of `open_server`.
    """
    wanted = [parse_address(address) for address in addresses]
    # A passed socket may be for streams or for datagrams: its options are checked once it is open.
    inherits = any(isinstance(address, FDAddress) for address in wanted)
    if not inherits:
        check_options(options, handler, [(address, address) for address in wanted])
    certificates: Certificates | None = None
    if over_tls := [address for address in wanted if address.tls]:
        certificates = Certificates(options.tls, over_tls)
        opened.callback(certificates.close)
        for fault in options.faults:
            if fault.flaw is not None:
                certificates.flawed(fault.flaw)  # made now, because it may fail
    listeners = await open_listeners(wanted, backlog=options.backlog, options=options.socket)
    for listener in listeners:
        opened.callback(listener.close)
    if inherits:
        check_options(options, handler, [(listener.requested, listener.address) for listener in listeners])
    await check_upstream(handler, [listener.address for listener in listeners])

    return listeners, certificates


async def check_upstream(handler: object, listening: Sequence[Address]) -> None:
    """Raise `UsageError` if `handler` forwards to one of `listening`, without end."""
    upstream: object = getattr(handler, "forwards_to", None)
    if isinstance(upstream, StreamAddress):
        await check_not_own(upstream, listening)
