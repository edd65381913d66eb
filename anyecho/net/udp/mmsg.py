"""Echo datagrams in batches with recvmmsg(2) and sendmmsg(2), called through ctypes. 64-bit Linux only.

A batch is one pair of system calls, and its addresses are not converted to text and back: most of the CPU time that
a datagram costs Python more than C. On other systems, `recvfrom` is used.
"""

from __future__ import annotations

__all__ = ("HAVE_MMSG", "BatchEcho")

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

from anyecho.net.error_queue import drain_error_queue
from anyecho.net.udp.counts import DatagramCounts, Guard, Source
from anyecho.net.udp.recvfrom import BATCH, CONTROL_SIZE, MAX_SIZE, PKTINFO

#: struct mmsghdr: pointer and length of name, iov and control; flags; msg_len.
_MESSAGE = struct.Struct("@PIPNPNi0PI0P")
_MESSAGE_WORDS = _MESSAGE.size // 4
_SIZE_WORD = struct.calcsize("@PIPNPNi0P") // 4
_CONTROL_SIZE_LONG = struct.calcsize("@PIPNP") // 8
#: struct iovec.
_VECTOR = struct.Struct("@PN")
#: struct sockaddr_in and sockaddr_in6: port, address (msg_name of recvmsg(2)).
_NAMES = {socket.AF_INET: struct.Struct("!2xH4s8x"), socket.AF_INET6: struct.Struct("!2xH4x16s4x")}
_HOSTS = {family: lru_cache(maxsize=16384)(partial(socket.inet_ntop, family)) for family in _NAMES}
#: Pktinfo behind its header, in words of 4: struct in_pktinfo (ipi_ifindex, ipi_spec_dst, ipi_addr) or struct
#: in6_pktinfo (ipi6_addr, ipi6_ifindex).
_CONTROL_WORDS = CONTROL_SIZE // 4
_IFINDEX4, _SPEC_DST4, _DST4, _IFINDEX6 = 4, 5, 6, 8
_DST6 = 16
#: struct cmsghdr: length with header, level, type. Data is aligned to 8 bytes.
_HEADER = struct.Struct("@Nii")
_HEADER_LONGS = CONTROL_SIZE // 8
#: CMSG_LEN and CMSG_SPACE of pktinfo.
_PKTINFO_LENGTHS = {socket.AF_INET: (28, 32), socket.AF_INET6: (36, 40)}

#: For a datagram without pktinfo, which another process has disabled on the shared socket. It may be a broadcast.
_NO_PKTINFO = OSError(errno.ENOMSG, os.strerror(errno.ENOMSG))

_libc = ctypes.CDLL(None, use_errno=True)
_recvmmsg: Any = getattr(_libc, "recvmmsg", None)
_sendmmsg: Any = getattr(_libc, "sendmmsg", None)


def _is_usable() -> bool:
    if sys.platform != "linux" or sys.maxsize < 2**32 or _recvmmsg is None or _sendmmsg is None:
        return False

    _recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
    _sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
    # A sandbox that blocks the two calls returns ENOSYS or EPERM.
    _recvmmsg(-1, None, 0, 0, None)
    return ctypes.get_errno() == errno.EBADF


#: Tests set this false to run `recvfrom` instead.
HAVE_MMSG = _is_usable()


class BatchEcho:
    """Echoes the datagrams that arrive on `sock`.

    With `reply_from_dst`, a reply leaves from the destination address of its datagram. IP_PKTINFO must be enabled.
    """

    def __init__(self, sock: socket.socket, *, reply_from_dst: bool) -> None:
        self._sock = sock
        self._reply_from_dst = reply_from_dst
        self._names = _NAMES[sock.family]
        self._host_of = _HOSTS[sock.family]
        # Pages never written to take no memory, and few datagrams are large.
        self._data, data_at = _allocate(BATCH * MAX_SIZE)
        self._name_bytes, names_at = _allocate(BATCH * self._names.size)
        self._control, control_at = _allocate(BATCH * CONTROL_SIZE)
        self._vectors, vectors_at = _allocate(BATCH * _VECTOR.size)
        self._messages, self._messages_at = _allocate(BATCH * _MESSAGE.size)
        self._clean_vectors = b"".join(_VECTOR.pack(data_at + each * MAX_SIZE, MAX_SIZE) for each in range(BATCH))
        self._clean_messages = b"".join(
            _MESSAGE.pack(
                *(names_at + each * self._names.size, self._names.size, vectors_at + each * _VECTOR.size, 1),
                *((control_at + each * CONTROL_SIZE, CONTROL_SIZE) if reply_from_dst else (0, 0)),
                *(0, 0),
            )
            for each in range(BATCH)
        )
        self._sizes = self._messages.cast("I")[_SIZE_WORD::_MESSAGE_WORDS]
        self._control_sizes = self._messages.cast("Q")[_CONTROL_SIZE_LONG :: _MESSAGE.size // 8]
        self._control_heads = self._control.cast("Q")[1::_HEADER_LONGS]
        self._pktinfo = PKTINFO[sock.family]
        self._pktinfo_length, self._pktinfo_room = _PKTINFO_LENGTHS[sock.family]
        #: Level and type as one integer, as the kernel writes them.
        self._pktinfo_head = int.from_bytes(struct.pack("@ii", *self._pktinfo), sys.byteorder)
        self._vector_sizes = self._vectors.cast("Q")[1::2]
        self._words = self._control.cast("I")

    def echo_batch(self, guard: Guard, counts: DatagramCounts) -> bool:
        """Echo queued datagrams, at most 64. Return false if each receive was an error."""
        for _ in range(BATCH):
            try:
                # Restore the sizes that the last batch has overwritten.
                self._vectors[:] = self._clean_vectors
                self._messages[:] = self._clean_messages
                count = _check(_recvmmsg(self._sock.fileno(), self._messages_at, BATCH, socket.MSG_DONTWAIT, None))
            except BlockingIOError:
                drain_error_queue(self._sock)  # the socket may be readable for its error queue only
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
        without_pktinfo = self._keep_only_pktinfo(count) if self._reply_from_dst else ()
        not_unicast = self._prepare_reply_control(count) if self._reply_from_dst else ()
        host_of, admit = self._host_of, guard.admit
        names = self._names.iter_unpack(self._name_bytes[: count * self._names.size])
        sources = [(host_of(address), port) for port, address in names]
        first = 0
        for each, source in enumerate(sources):
            if not admit(source):
                pass
            elif without_pktinfo and each in without_pktinfo:
                counts.count_error(_NO_PKTINFO)
            elif not_unicast and each in not_unicast:
                # Never reply to broadcast or multicast: amplification.
                guard.refuse(source)
            else:
                continue

            self._send_batch(first, sizes[first:each], sources, guard, counts)
            first = each + 1

        self._send_batch(first, sizes[first:], sources, guard, counts)

    def _keep_only_pktinfo(self, count: int) -> Collection[int]:
        """Remove control messages other than pktinfo. Return the indices of datagrams without pktinfo."""
        sizes, heads = self._control_sizes[:count].tolist(), self._control_heads[:count].tolist()
        if sizes == [self._pktinfo_room] * count and heads == [self._pktinfo_head] * count:
            return ()

        return {each for each, size in enumerate(sizes) if not self._move_pktinfo(each * CONTROL_SIZE, size, each)}

    def _move_pktinfo(self, start: int, size: int, number: int) -> bool:
        """Move the pktinfo of datagram `number` to the front of its control messages. Return whether it has one."""
        at, end, length = start, start + size, self._pktinfo_length
        while at + _HEADER.size <= end:
            cmsg_len, *kind = _HEADER.unpack_from(self._control, at)
            if tuple(kind) == self._pktinfo and cmsg_len == length and at + length <= end:
                self._control[start : start + length] = bytes(self._control[at : at + length])
                self._control_sizes[number] = self._pktinfo_room
                return True
            at += max(cmsg_len + 7 & ~7, _HEADER.size)

        return False

    def _prepare_reply_control(self, count: int) -> Collection[int]:
        """Turn received pktinfo (destination) into pktinfo to send with (source of the reply), in place.

        Return the indices of datagrams that were not sent to a unicast address. The interface is cleared, because
        the route of the reply may be through another; only a link-local address needs it.
        """
        end = count * _CONTROL_WORDS
        if self._sock.family == socket.AF_INET:
            self._words[_IFINDEX4:end:_CONTROL_WORDS] = array("I", [0]) * count
            spec_dsts = self._words[_SPEC_DST4:end:_CONTROL_WORDS].tolist()
            dsts = self._words[_DST4:end:_CONTROL_WORDS].tolist()
            return () if spec_dsts == dsts else {each for each in range(count) if spec_dsts[each] != dsts[each]}

        firsts = self._control[_DST6 : count * CONTROL_SIZE : CONTROL_SIZE].tolist()
        for each, first in enumerate(firsts):
            if first != 0xFE:
                self._words[each * _CONTROL_WORDS + _IFINDEX6] = 0

        return {each for each, first in enumerate(firsts) if first == 0xFF}

    def _send_batch(
        self, first: int, sizes: Sequence[int], sources: Sequence[Source], guard: Guard, counts: DatagramCounts
    ) -> None:
        """Send back ``len(sizes)`` datagrams of the batch, beginning with number `first`."""
        done = 0
        while done < len(sizes):
            try:
                at = self._messages_at + (first + done) * _MESSAGE.size
                sent = _check(_sendmmsg(self._sock.fileno(), at, len(sizes) - done, socket.MSG_DONTWAIT))
            except OSError as exc:
                # The error is that of the first datagram.
                counts.count_send_error(exc, sources[first + done], guard)
                done += 1
            else:
                counts.echoed += sent
                counts.bytes_echoed += sum(sizes[done : done + sent])
                done += sent


def _allocate(size: int) -> tuple[memoryview, int]:
    """Return `size` bytes at a fixed address, and the address."""
    memory = bytearray(size)
    return memoryview(memory), ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))

    return result
