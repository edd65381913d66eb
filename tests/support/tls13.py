"""A TLS 1.3 peer that makes its own records, for handshake messages that are fragmented or never completed.

OpenSSL performs the handshake. The secrets that it logs (SSLKEYLOGFILE) become keys; its session is not used then.
"""

from __future__ import annotations

__all__ = (
    "ALERT",
    "CLOSE_NOTIFY",
    "DATA",
    "HANDSHAKE",
    "KEY_UPDATE",
    "KEY_UPDATE_REQUESTED",
    "CraftedPeer",
    "crafted_server",
    "ticket",
)

import os
import socket
import ssl
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import TypeAlias

from anyio import create_task_group, fail_after, wait_readable
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from anyecho.client.client import Client, connect
from anyecho.client.options import ConnectOptions
from anyecho.net.poller import Fallback
from anyecho.net.tls.records import Records
from anyecho.net.tls.stream import TLSStream
from tests.support.certificates import authority
from tests.support.peers import SOON

#: Types of records (RFC 8446, section 5.1).
ALERT, HANDSHAKE, DATA = 21, 22, 23
#: Whole handshake messages (section 4.6.3).
KEY_UPDATE = b"\x18\x00\x00\x01\x00"
KEY_UPDATE_REQUESTED = b"\x18\x00\x00\x01\x01"
CLOSE_NOTIFY = b"\x01\x00"

_HEADER = 5
_CIPHERS: dict[str, tuple[type[HashAlgorithm], type[AESGCM | ChaCha20Poly1305], int]] = {
    "TLS_AES_128_GCM_SHA256": (SHA256, AESGCM, 16),
    "TLS_AES_256_GCM_SHA384": (SHA384, AESGCM, 32),
    "TLS_CHACHA20_POLY1305_SHA256": (SHA256, ChaCha20Poly1305, 32),
}

Record: TypeAlias = tuple[int, bytes]


def ticket(size: int = 200) -> bytes:
    """A NewSessionTicket message (section 4.6.1) that resumes no session."""
    body = struct.pack(">IIB", 7200, 0, 8) + bytes(8) + struct.pack(">H", size) + os.urandom(size) + b"\x00\x00"
    return b"\x04" + len(body).to_bytes(3, "big") + body


@dataclass
class _Keys:
    """The traffic keys of one direction."""

    cipher: str
    secret: bytes
    number: int = attribute(init=False, default=0)

    def __post_init__(self) -> None:
        _, cipher, size = _CIPHERS[self.cipher]
        self._aead = cipher(self._expand("key", size))
        self._iv = int.from_bytes(self._expand("iv", 12), "big")

    def seal(self, kind: int, content: bytes) -> bytes:
        header = struct.pack(">BHH", DATA, 0x0303, len(content) + 1 + 16)
        return header + self._aead.encrypt(self._nonce(), content + bytes([kind]), header)

    def open(self, record: bytes) -> Record:
        content = self._aead.decrypt(self._nonce(), record[5:], record[:5]).rstrip(b"\0")
        return content[-1], content[:-1]

    def update(self) -> None:
        """Derive the next keys (section 7.2)."""
        self.secret = self._expand("traffic upd", len(self.secret))
        self.number = 0
        self.__post_init__()

    def _nonce(self) -> bytes:
        nonce, self.number = self._iv ^ self.number, self.number + 1
        return nonce.to_bytes(12, "big")

    def _expand(self, label: str, size: int) -> bytes:
        """HKDF-Expand-Label without a context (section 7.1)."""
        name = b"tls13 " + label.encode()
        info = struct.pack(">HB", size, len(name)) + name + b"\0"
        return HKDFExpand(_CIPHERS[self.cipher][0](), size, info).derive(self.secret)


@dataclass(eq=False)
class CraftedPeer:
    """A peer after its handshake. It reads and writes records, and closes the socket."""

    sock: socket.socket
    _writing: _Keys
    _reading: _Keys
    _unread: bytes = b""
    #: Handshake messages received, in order.
    messages: list[bytes] = attribute(default_factory=list)

    @classmethod
    async def client(cls, sock: socket.socket) -> CraftedPeer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority().configure_trust(context)
        return await cls._over(sock, context, "CLIENT", "SERVER")

    @classmethod
    async def server(cls, sock: socket.socket) -> CraftedPeer:
        """A server that sends no tickets."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority().issue_cert("localhost", "127.0.0.1").configure_cert(context)
        context.num_tickets = 0
        return await cls._over(sock, context, "SERVER", "CLIENT")

    @classmethod
    async def _over(cls, sock: socket.socket, context: ssl.SSLContext, own: str, peer: str) -> CraftedPeer:
        sock.setblocking(False)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        with tempfile.NamedTemporaryFile("r") as log:
            context.keylog_filename = log.name
            name = "localhost" if own == "CLIENT" else None
            records = Records(context, server_side=name is None, server_hostname=name)
            stream = TLSStream(sock, Fallback().register(sock), records)
            await stream.handshake()
            words = [line.split() for line in log if not line.startswith("#")]
        cipher = records.tls.cipher()
        assert cipher is not None
        secrets = {label: bytes.fromhex(secret) for label, _, secret in words}
        keys = {side: _Keys(cipher[0], secrets[f"{side}_TRAFFIC_SECRET_0"]) for side in (own, peer)}
        return cls(sock, keys[own], keys[peer])

    def seal(self, kind: int, content: bytes, *sizes: int) -> bytes:
        """Records of type `kind` for `content`: `sizes` bytes in each, and the rest in the last."""
        records = b""
        for size in sizes:
            records += self._writing.seal(kind, content[:size])
            content = content[size:]
        return records + (self._writing.seal(kind, content) if content else b"")

    def update_keys(self, *sizes: int, requested: bool = False) -> bytes:
        """A KeyUpdate in records of `sizes` bytes and the rest. Later records use new keys."""
        records = self.seal(HANDSHAKE, KEY_UPDATE_REQUESTED if requested else KEY_UPDATE, *sizes)
        self.next_keys()
        return records

    def next_keys(self) -> None:
        """Use new keys, as after the last byte of a KeyUpdate."""
        self._writing.update()

    def send(self, records: bytes) -> None:
        """Send all at once without waiting: the send buffer must have room."""
        assert self.sock.send(records) == len(records)

    async def read(self) -> Record | None:
        """The next data or alert; None at EOF. Handshake messages before it are added to `messages`."""
        while True:
            while len(self._unread) < _HEADER or len(self._unread) < self._size():
                await wait_readable(self.sock)
                data = self.sock.recv(65536)
                if not data:
                    assert not self._unread, "half a record"
                    return None
                self._unread += data

            size = self._size()
            record, self._unread = self._unread[:size], self._unread[size:]
            kind, content = self._reading.open(record)
            if kind != HANDSHAKE:
                return kind, content
            self.messages.append(content)
            if content[:1] == KEY_UPDATE[:1]:
                self._reading.update()

    async def read_all(self) -> list[Record]:
        """All data and alerts until EOF; consecutive data records are joined."""
        records: list[Record] = []
        while (record := await self.read()) is not None:
            if record[0] == DATA and records and records[-1][0] == DATA:
                records[-1] = (DATA, records[-1][1] + record[1])
            else:
                records.append(record)
        return records

    def _size(self) -> int:
        return _HEADER + int.from_bytes(self._unread[3:5], "big")

    def close(self) -> None:
        self.sock.close()


@asynccontextmanager
async def crafted_server(options: ConnectOptions) -> AsyncIterator[tuple[Client, CraftedPeer]]:
    """Yield a client and the server that it is connected to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        servers: list[CraftedPeer] = []

        async def accept() -> None:
            await wait_readable(listener)
            servers.append(await CraftedPeer.server(listener.accept()[0]))

        with fail_after(SOON):
            async with create_task_group() as tasks:
                tasks.start_soon(accept)
                client = await connect(f"tls://localhost:{listener.getsockname()[1]}", options=options)
        async with client:
            yield client, servers[0]
        servers[0].close()
