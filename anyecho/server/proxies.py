"""Proxies: the listeners of a running server, each with an upstream and toxics that can be changed.

It must not know HTTP.
"""

from __future__ import annotations

__all__ = ("ECHO", "Proxies", "Proxy")

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from anyecho.address import Address, FDAddress, StreamAddress, TCPAddress, UDPAddress, parse_address
from anyecho.errors import BindError, UsageError, quoted
from anyecho.faults.fault import Fault
from anyecho.faults.plan import FaultPlan
from anyecho.handlers import Handler
from anyecho.net.listen import Listener, open_listeners
from anyecho.server.admission import Admission, ListenerPolicy
from anyecho.server.forwarding import forward
from anyecho.server.listening import Listening, StreamListener
from anyecho.server.opening import check_upstream
from anyecho.server.options import ServeOptions, require_tasks
from anyecho.server.reasons import CloseReason
from anyecho.server.toxics import Toxic
from anyecho.server.unused import expected_header
from anyecho.uri import format_authority

logger = logging.getLogger("anyecho.server")

#: The upstream that stands for the handler of the server, by default the echo.
ECHO = "echo"
#: The address of a proxy without one: a free port of every interface.
_ANY = ":0"


@dataclass(eq=False)
class Proxy:
    """A listener that can be changed. `address` is what it listens on, or will listen on once it is enabled."""

    name: str
    address: StreamAddress
    upstream: str
    plan: FaultPlan
    #: Faults that are none of its toxics, and stay: those of the server's options.
    lasting: Mapping[str, Fault] = field(default_factory=dict)
    toxics: list[Toxic] = field(default_factory=list)
    #: The sockets that accept; none while it is disabled.
    streams: list[StreamListener] = field(default_factory=list)

    @property
    def enabled(self) -> bool:
        return bool(self.streams)

    @property
    def listen(self) -> str:
        """The address as toxiproxy writes it: ``127.0.0.1:10000``."""
        address = self.streams[0].listener.address if self.streams else self.address
        if isinstance(address, TCPAddress) and not address.tls:
            return format_authority(address.host, address.port)

        return str(address)

    def is_at(self, listen: str) -> bool:
        """Whether `listen` is its address, as bound or as requested: localhost is bound as 127.0.0.1 and ::1.

        Raises `AddressError`.
        """
        return listen == self.listen or parse_address(listen or _ANY) == self.address

    @property
    def is_passed(self) -> bool:
        """Whether another process has passed its socket, and may hold it open."""
        return any(isinstance(stream.listener.requested, FDAddress) for stream in self.streams)

    def toxic(self, name: str) -> Toxic | None:
        return next((toxic for toxic in self.toxics if toxic.name == name), None)

    def sorted_toxics(self) -> list[Toxic]:
        """The toxics in the order in which bytes pass them, upstream first."""
        return sorted(self.toxics, key=lambda toxic: toxic.stream != "upstream")


class Proxies:
    """The proxies of a server, by name. From the start there is one for each address for streams.

    Raises:
        UsageError: there is no such address, or `options.engine` is ``events``.
    """

    def __init__(self, listening: Listening, admission: Admission, options: ServeOptions, seed: int) -> None:
        require_tasks(options, "control needs", "control")
        if not listening.streams:
            raise UsageError("control has no effect: every address is for UDP", options=("control",))

        self.by_name: dict[str, Proxy] = {}
        self._listening = listening
        self._admission = admission
        self._options = options
        self.seed = seed
        by_address: dict[Address, list[StreamListener]] = {}
        for stream in listening.streams:
            by_address.setdefault(stream.listener.requested, []).append(stream)
        for streams in by_address.values():
            self._take_over(streams)

    async def create(self, name: str, listen: str, upstream: str, *, enabled: bool) -> Proxy:
        """Add a proxy, and listen if it is `enabled`. Raises `UsageError` and `BindError`; then there is none."""
        address = self._parse_listen(listen)
        await check_upstream(_handler_for(upstream), [address])
        proxy = Proxy(name, address, upstream, FaultPlan({}, self.seed))
        if enabled:
            await self._open(proxy)
        self.by_name[name] = proxy
        return proxy

    async def update(self, proxy: Proxy, *, listen: str, upstream: str, enabled: bool) -> None:
        """Change `proxy`; close its connections if it is moved, gets another upstream or is disabled.

        Raises `UsageError`, and nothing is changed; `BindError`, and it is disabled and otherwise unchanged.
        """
        before, moved = (proxy.address, proxy.upstream), not proxy.is_at(listen)
        address = self._parse_listen(listen) if moved else proxy.address
        await check_upstream(_handler_for(upstream), [address])
        if proxy.enabled and (moved or not enabled):
            self._close(proxy)
        elif upstream != proxy.upstream:
            self._admission.close_connections(proxy.plan, CloseReason.CONTROL)
        proxy.address, proxy.upstream = address, upstream
        for stream in proxy.streams:
            stream.set_policy(self._policy(proxy, stream.listener))
        if enabled and not proxy.enabled:
            try:
                await self._open(proxy)
            except BindError:
                proxy.address, proxy.upstream = before
                raise

    def delete(self, proxy: Proxy) -> None:
        """Close `proxy` and its connections. Raises `UsageError` if its socket is a passed one."""
        if proxy.enabled:
            self._close(proxy)
        del self.by_name[proxy.name]

    async def reset(self) -> None:
        """Remove all toxics, then enable each proxy. Raises `BindError`."""
        for proxy in self.by_name.values():
            self.set_toxics(proxy, [])
        for proxy in [*self.by_name.values()]:
            if not proxy.enabled:
                await self._open(proxy)

    def set_toxics(self, proxy: Proxy, toxics: Sequence[Toxic]) -> None:
        """Let `toxics` act on the connections of `proxy`, on open ones too."""
        proxy.toxics = [*toxics]
        faults = {toxic.name: fault for toxic in toxics if (fault := toxic.fault) is not None}
        proxy.plan.faults = {**proxy.lasting, **faults}
        self._admission.change_faults()

    def _take_over(self, streams: Sequence[StreamListener]) -> None:
        """Make a proxy of the sockets of an address."""
        plan = streams[0].policy.faults
        address = _to_reopen(streams[0].listener)
        # A toxic must not take the place of a fault with the same name.
        lasting = {f"{name} at the start": fault for name, fault in plan.faults.items()}
        proxy = Proxy("", address, ECHO, plan, lasting, streams=[*streams])
        proxy.name = proxy.listen
        self.by_name[proxy.name] = proxy
        for stream in streams:
            stream.set_policy(self._policy(proxy, stream.listener))
        self.set_toxics(proxy, [])

    async def _open(self, proxy: Proxy) -> None:
        if self._listening.stopped:
            raise BindError(f"cannot listen on {proxy.address}: the server accepts no more")

        options = self._options
        listeners = await open_listeners([proxy.address], backlog=options.backlog, options=options.socket)
        proxy.address = _to_reopen(listeners[0])
        proxy.streams = [self._listening.add(listener, self._policy(proxy, listener)) for listener in listeners]
        logger.info("proxy %s listens on %s, upstream %s", quoted(proxy.name), proxy.listen, quoted(proxy.upstream))

    def _close(self, proxy: Proxy) -> None:
        if proxy.is_passed:
            raise UsageError(f"{proxy.name} listens on a passed socket, which only its owner can close")
        for stream in proxy.streams:
            self._listening.remove(stream)
        proxy.streams = []
        self._admission.close_connections(proxy.plan, CloseReason.CONTROL)
        logger.info("proxy %s is closed", quoted(proxy.name))

    def _policy(self, proxy: Proxy, listener: Listener) -> ListenerPolicy:
        certificates = self._listening.certificates if proxy.address.tls else None
        versions = expected_header(proxy.address, self._options)
        handler = _handler_for(proxy.upstream)
        return ListenerPolicy(versions, certificates, proxy.plan, str(listener.address), handler)

    def _parse_listen(self, text: str) -> StreamAddress:
        address = parse_address(text or _ANY)
        if isinstance(address, UDPAddress | FDAddress):
            raise UsageError(f"a proxy listens on a TCP or Unix address, not on {address}")
        if address.tls and self._listening.certificates is None:
            raise UsageError(f"no certificate for {address}: the server has no address over TLS")
        if address.proxy not in (None, "off") and not self._options.proxy_trusted:
            raise UsageError(f"no proxy is trusted to send a PROXY header to {address}")

        return address


def _handler_for(upstream: str) -> Handler | None:
    """Return what serves the connections; None for the handler of the server. Raises `AnyechoError`."""
    return None if upstream == ECHO else forward(upstream)


def _to_reopen(listener: Listener) -> StreamAddress:
    """Return the address that opens a listener like this one, on the same port."""
    requested, bound = listener.requested, listener.address
    assert isinstance(requested, StreamAddress)
    assert isinstance(bound, StreamAddress)
    if isinstance(requested, TCPAddress) and isinstance(bound, TCPAddress):
        return replace(requested, port=bound.port)

    return replace(bound, proxy=requested.proxy) if isinstance(requested, FDAddress) else requested
