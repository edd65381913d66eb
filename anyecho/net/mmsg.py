"""Many datagrams in one system call: recvmmsg(2) and sendmmsg(2), which Python's socket module does not have.

One pair of calls a batch, and no address is turned into text and back: that is most of what a datagram costs Python
more than C. It needs a Linux of 64 bits; elsewhere there is `singly`.
"""

from __future__ import annotations

__all__ = ("HAVE_MMSG", "Batched")

import ctypes
import errno
import os
import socket
import struct
import sys
from array import array
from collections.abc import Collection, Sequence
from functools import lru_cache, partial
from typing import Any

from anyecho.net.datagram_counts import DatagramCounts, Guard, Source
from anyecho.net.error_queue import drain_error_queue
from anyecho.net.pktinfo import PKTINFO

#: Datagrams taken in one wake-up, before others have their turn: about 0.3 ms.
_BATCH = 64
#: The largest datagram has 65535 bytes, its headers included; so none is ever cut.
_SIZE = 65536

#: struct mmsghdr: pointer and size of name, vectors and control, flags, and how long the datagram is.
_MESSAGE = struct.Struct("@PIPNPNi0PI0P")
_MESSAGE_WORDS = _MESSAGE.size // 4
_SIZE_WORD = struct.calcsize("@PIPNPNi0P") // 4
_CONTROL_SIZE_LONG = struct.calcsize("@PIPNP") // 8
#: struct iovec.
_VECTOR = struct.Struct("@PN")
#: struct sockaddr_in and sockaddr_in6: port, address.
_NAMES = {socket.AF_INET: struct.Struct("!2xH4s8x"), socket.AF_INET6: struct.Struct("!2xH4x16s4x")}
_HOSTS = {family: lru_cache(maxsize=16384)(partial(socket.inet_ntop, family)) for family in _NAMES}
#: Room for the control messages of a datagram: pktinfo, and others that the giver of a passed socket has asked for.
#: Behind its header, in words of 4: struct in_pktinfo, which is the interface, our address for an answer, the
#: address in the header; struct in6_pktinfo, address and interface.
_CONTROL_SIZE = 512
_CONTROL_WORDS = _CONTROL_SIZE // 4
_INTERFACE4, _OURS4, _HEADERS4, _INTERFACE6 = 4, 5, 6, 8
_ADDRESS6 = 16
#: struct cmsghdr: length, header included, level, type. What follows it is aligned to 8 bytes.
_HEADER = struct.Struct("@Nii")
_HEADER_LONGS = _CONTROL_SIZE // 8
#: The length of a message that is pktinfo, and the room that it takes.
_PKTINFO_LENGTHS = {socket.AF_INET: (28, 32), socket.AF_INET6: (36, 40)}

#: For a datagram without pktinfo, which the giver of the socket has switched off: an answer might be one to a
#: broadcast.
_NO_PKTINFO = OSError(errno.ENOMSG, os.strerror(errno.ENOMSG))

_libc = ctypes.CDLL(None, use_errno=True)
_recvmmsg: Any = getattr(_libc, "recvmmsg", None)
_sendmmsg: Any = getattr(_libc, "sendmmsg", None)


def _is_usable() -> bool:
    if sys.platform != "linux" or sys.maxsize < 2**32 or _recvmmsg is None or _sendmmsg is None:
        return False

    _recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
    _sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
    # A sandbox may know the older calls only; then it says ENOSYS or EPERM.
    _recvmmsg(-1, None, 0, 0, None)
    return ctypes.get_errno() == errno.EBADF


#: Tests set this false to run everything one by one once.
HAVE_MMSG = _is_usable()


class Batched:
    """Echoes on `sock`; with `asked`, from the address that was asked, which IP_PKTINFO must tell."""

    def __init__(self, sock: socket.socket, *, asked: bool) -> None:
        self._sock = sock
        self._asked = asked
        self._names = _NAMES[sock.family]
        self._host_of = _HOSTS[sock.family]
        # Memory that nobody has written to yet is none: few datagrams are large.
        self._data, data_at = _allocate(_BATCH * _SIZE)
        self._name_bytes, names_at = _allocate(_BATCH * self._names.size)
        self._control, control_at = _allocate(_BATCH * _CONTROL_SIZE)
        self._vectors, vectors_at = _allocate(_BATCH * _VECTOR.size)
        self._messages, self._messages_at = _allocate(_BATCH * _MESSAGE.size)
        self._clean_vectors = b"".join(_VECTOR.pack(data_at + each * _SIZE, _SIZE) for each in range(_BATCH))
        self._clean_messages = b"".join(
            _MESSAGE.pack(
                *(names_at + each * self._names.size, self._names.size, vectors_at + each * _VECTOR.size, 1),
                *((control_at + each * _CONTROL_SIZE, _CONTROL_SIZE) if asked else (0, 0)),
                *(0, 0),
            )
            for each in range(_BATCH)
        )
        self._sizes = self._messages.cast("I")[_SIZE_WORD::_MESSAGE_WORDS]
        self._control_sizes = self._messages.cast("Q")[_CONTROL_SIZE_LONG :: _MESSAGE.size // 8]
        self._control_heads = self._control.cast("Q")[1::_HEADER_LONGS]
        self._pktinfo = PKTINFO[sock.family]
        self._pktinfo_length, self._pktinfo_room = _PKTINFO_LENGTHS[sock.family]
        #: Level and type as the kernel writes them.
        self._pktinfo_head = int.from_bytes(struct.pack("@ii", *self._pktinfo), sys.byteorder)
        self._vector_sizes = self._vectors.cast("Q")[1::2]
        self._words = self._control.cast("I")

    def turn(self, guard: Guard, counts: DatagramCounts) -> bool:
        """Echo what has come, at most 64; return whether any of it was no error."""
        for _ in range(_BATCH):
            try:
                count = self._receive()
            except BlockingIOError:
                drain_error_queue(self._sock)  # which may be what was reported
                return True
            except OSError as exc:
                counts.count_error(exc)
            else:
                self._echo(count, guard, counts)
                return True

        return False

    def _echo(self, count: int, guard: Guard, counts: DatagramCounts) -> None:
        sizes = self._sizes[:count].tolist()
        counts.received += count
        counts.bytes_received += sum(sizes)
        self._vector_sizes[:count] = array("Q", sizes)
        unknown = self._isolate_pktinfo(count) if self._asked else ()
        to_many = self._prepare_control(count) if self._asked else ()
        host_of, admit = self._host_of, guard.admit
        names = self._names.iter_unpack(self._name_bytes[: count * self._names.size])
        sources = [(host_of(address), port) for port, address in names]
        first = 0
        for each, source in enumerate(sources):
            if not admit(source):
                pass
            elif unknown and each in unknown:
                counts.count_error(_NO_PKTINFO)
            elif to_many and each in to_many:
                # Were all of them to answer, the sender, or whoever it names, would drown.
                guard.refuse(source)
            else:
                continue

            self._answer(first, sizes[first:each], sources, guard, counts)
            first = each + 1

        self._answer(first, sizes[first:], sources, guard, counts)

    def _isolate_pktinfo(self, count: int) -> Collection[int]:
        """Leave pktinfo as the only control message of each datagram; return the numbers of those without."""
        sizes, heads = self._control_sizes[:count].tolist(), self._control_heads[:count].tolist()
        if sizes == [self._pktinfo_room] * count and heads == [self._pktinfo_head] * count:
            return ()

        return {each for each, size in enumerate(sizes) if not self._find_pktinfo(each * _CONTROL_SIZE, size, each)}

    def _find_pktinfo(self, start: int, size: int, number: int) -> bool:
        """Move pktinfo to the front of the control messages of datagram `number`; return whether there is one."""
        at, end, length = start, start + size, self._pktinfo_length
        while at + _HEADER.size <= end:
            this, *kind = _HEADER.unpack_from(self._control, at)
            if tuple(kind) == self._pktinfo and this == length and at + length <= end:
                self._control[start : start + length] = bytes(self._control[at : at + length])
                self._control_sizes[number] = self._pktinfo_room
                return True
            at += max(this + 7 & ~7, _HEADER.size)

        return False

    def _prepare_control(self, count: int) -> Collection[int]:
        """Turn what the kernel said of the address that was asked into what it shall answer from.

        Return the numbers of those that were sent to many. The way back need not be the way it came, hence no
        interface but for a link-local address, which means nothing without.
        """
        end = count * _CONTROL_WORDS
        if self._sock.family == socket.AF_INET:
            self._words[_INTERFACE4:end:_CONTROL_WORDS] = array("I", [0]) * count
            ours = self._words[_OURS4:end:_CONTROL_WORDS].tolist()
            headers = self._words[_HEADERS4:end:_CONTROL_WORDS].tolist()
            return () if ours == headers else {each for each in range(count) if ours[each] != headers[each]}

        firsts = self._control[_ADDRESS6 : count * _CONTROL_SIZE : _CONTROL_SIZE].tolist()
        for each, first in enumerate(firsts):
            if first != 0xFE:
                self._words[each * _CONTROL_WORDS + _INTERFACE6] = 0

        return {each for each, first in enumerate(firsts) if first == 0xFF}

    def _answer(
        self, first: int, sizes: Sequence[int], sources: Sequence[Source], guard: Guard, counts: DatagramCounts
    ) -> None:
        """Send back those of `sizes`, beginning with the `first` of the batch."""
        done = 0
        while done < len(sizes):
            try:
                sent = self._send(first + done, len(sizes) - done)
            except OSError as exc:
                # It is about the first one. SO_BROADCAST is never set, so the kernel refuses the broadcast
                # addresses of every network it is on.
                if exc.errno == errno.EACCES:
                    guard.refuse(sources[first + done])
                else:
                    counts.count_error(exc)
                done += 1
            else:
                counts.echoed += sent
                counts.bytes_echoed += sum(sizes[done : done + sent])
                done += sent

    def _receive(self) -> int:
        # What the last batch has written of sizes.
        self._vectors[:] = self._clean_vectors
        self._messages[:] = self._clean_messages
        return _check(_recvmmsg(self._sock.fileno(), self._messages_at, _BATCH, socket.MSG_DONTWAIT, None))

    def _send(self, first: int, count: int) -> int:
        at = self._messages_at + first * _MESSAGE.size
        return _check(_sendmmsg(self._sock.fileno(), at, count, socket.MSG_DONTWAIT))


def _allocate(size: int) -> tuple[memoryview, int]:
    """So many bytes that do not move, and where they are."""
    memory = bytearray(size)
    return memoryview(memory), ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))

    return result
