"""Send the probes of a ping as datagrams, and assign the replies to them, in any order."""

from __future__ import annotations

__all__ = ("DatagramPing",)

from collections import deque

from anyio import BrokenResourceError, CancelScope, ClosedResourceError
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from anyecho.address import UDPAddress
from anyecho.measure.ping_streams import Connect, peer_of
from anyecho.measure.probes import Probe, Probes
from anyecho.net.tls.errors import explain
from anyecho.net.udp.stream import DatagramStream

#: Settled probes that are remembered, to recognise late and duplicate replies.
_HISTORY_SIZE = 16384


class DatagramPing:
    """Probes on one connected UDP socket, which is opened with the first."""

    def __init__(self, address: UDPAddress, connect: Connect, probes: Probes, tasks: TaskGroup) -> None:
        self._address = address
        self._connect = connect
        self._probes = probes
        self._tasks = tasks
        self._stream: DatagramStream | None = None
        self._recent: deque[Probe] = deque()
        #: By payload: the unanswered probes, in order, and the last answered one. Payloads below 8 bytes repeat.
        self._unanswered: dict[bytes, deque[Probe]] = {}
        self._answered: dict[bytes, Probe] = {}

    async def send(self, probe: Probe) -> None:
        """Send `probe`. Raises `ConnectError` if the name is unknown or there is no route."""
        stream = self._stream or await self._open()
        self._remember(probe)
        self._probes.sent(probe)
        # send(2) sends nothing if it reports the refusal of an earlier probe. Each round settles a probe.
        while probe.outstanding:
            try:
                if not stream.send_nowait(probe.payload):
                    await stream.send(probe.payload)
                return
            except BrokenResourceError as exc:
                if await self._fail(stream, exc):
                    return

    async def aclose(self) -> None:
        if self._stream is not None:
            with CancelScope(shield=True):
                await self._stream.aclose()

    async def _open(self) -> DatagramStream:
        client = await self._connect(lambda _: None)
        assert isinstance(client.stream, DatagramStream)
        self._stream = client.stream
        self._probes.connected(peer_of(client.stream, self._address), again=False)
        self._tasks.start_soon(self._receive, client.stream)
        return client.stream

    async def _receive(self, stream: DatagramStream) -> None:
        while True:
            try:
                reply = stream.receive_nowait()
                if reply is None:
                    await stream.readable()
                    continue
            except BrokenResourceError as exc:
                await self._fail(stream, exc)
            except ClosedResourceError:
                return
            else:
                self._match(reply)
            await checkpoint()  # a flooding peer must not starve other tasks

    def _match(self, reply: bytes) -> None:
        now = self._probes.clock()
        if waiting := self._unanswered.get(reply):
            probe = next((each for each in waiting if each.outstanding), waiting[0])
            self._forget(probe)
            self._answered[reply] = probe
            self._probes.reply(probe, now)
        elif (probe_before := self._answered.get(reply)) is not None:
            self._probes.reply(probe_before, now)
        else:
            self._match_wrong(reply)

    def _match_wrong(self, reply: bytes) -> None:
        """Report `reply`, which equals no probe, as that of the outstanding probe most like it."""
        same_size = [each for each in self._probes.outstanding.values() if len(each.payload) == len(reply)]
        if not same_size:
            self._probes.wrong(None, f"a datagram of {len(reply)} bytes came that was never sent")
            return

        def differing(probe: Probe) -> int:
            return sum(a != b for a, b in zip(probe.payload, reply, strict=True))

        probe = min(same_size, key=differing)
        at = next(i for i, byte in enumerate(reply) if byte != probe.payload[i])
        self._forget(probe)
        self._answered[probe.payload] = probe
        values = f"sent 0x{probe.payload[at]:02x}, got 0x{reply[at]:02x}"
        self._probes.wrong(probe, f"byte {at} is wrong: {values}")

    async def _fail(self, stream: DatagramStream, exc: BrokenResourceError) -> bool:
        """Resend to the next endpoint of the address, or return false: the oldest outstanding probe is lost."""
        outstanding = [each for each in self._probes.outstanding.values() if each.is_sent]
        before = [each.sent_at for each in outstanding]
        for probe in outstanding:
            self._probes.sent(probe)
        if await stream.reconnect([each.payload for each in outstanding]):
            self._probes.connected(peer_of(stream, self._address), again=True)
            return True

        for probe, sent_at in zip(outstanding, before, strict=True):
            probe.sent_at = sent_at
        self._probes.fail(outstanding[:1], explain(exc.__cause__ or exc), error=True)
        return False

    def _remember(self, probe: Probe) -> None:
        self._unanswered.setdefault(probe.payload, deque()).append(probe)
        self._recent.append(probe)
        while len(self._recent) > _HISTORY_SIZE and not self._recent[0].outstanding:
            old = self._recent.popleft()
            self._forget(old)
            if self._answered.get(old.payload) is old:
                del self._answered[old.payload]

    def _forget(self, probe: Probe) -> None:
        """Remove `probe` from the unanswered ones, if it is there."""
        waiting = self._unanswered.get(probe.payload, deque())
        if probe in waiting:
            waiting.remove(probe)
            if not waiting:
                del self._unanswered[probe.payload]
