"""Socket activation: read which descriptors a service manager passed, and their names (sd_listen_fds(3)).

This module reads environment variables only. `inherit` checks and takes over the sockets.
"""

from __future__ import annotations

__all__ = ("Activation", "take_activation")

import os
import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

from anyecho.address import Address, FDAddress
from anyecho.errors import BindError, StartError

#: SD_LISTEN_FDS_START: the first descriptor after the standard streams.
_FIRST = 3
#: LISTEN_PIDFDID (systemd 258) identifies this process again; LISTEN_PID suffices.
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


@dataclass(frozen=True)
class Activation:
    """The passed descriptors: number -> name. Several descriptors may have the same name."""

    names: Mapping[int, str] = field(default_factory=dict)

    def resolve(self, addresses: Sequence[Address]) -> list[Address]:
        """Return `addresses` with each name replaced by all descriptors of that name.

        If `addresses` is empty, return all passed descriptors. Raise `BindError` for a name that no descriptor has.
        """
        if not addresses:
            return [FDAddress(fd=fd) for fd in self.names]

        return [each for address in addresses for each in self._find(address)]

    def unused(self, addresses: Sequence[Address]) -> list[str]:
        """Return the passed descriptors that are not among the resolved `addresses`, as ``fd://3 (web)``."""
        used = {address.fd for address in addresses if isinstance(address, FDAddress)}
        return [f"{FDAddress(fd=fd)} ({name})" for fd, name in self.names.items() if fd not in used]

    def _find(self, address: Address) -> list[Address]:
        if not isinstance(address, FDAddress) or isinstance(address.fd, int):
            return [address]
        if found := [replace(address, fd=fd) for fd, name in self.names.items() if name == address.fd]:
            return [*found]

        known = ", ".join(map(repr, dict.fromkeys(self.names.values())))
        reason = f"nothing of that name was passed, only {known}" if known else "no service manager passed anything"
        raise BindError(f"cannot listen on {address}: {reason}")


def take_activation(environ: MutableMapping[str, str]) -> Activation:
    """Return the descriptors that `environ` declares for this process (LISTEN_PID), else none.

    The variables are removed and the descriptors set close-on-exec, so that child processes do not take them over.
    Call this before any other code opens a descriptor, which might get the number of a descriptor that was declared
    but not passed. Raises `StartError`.
    """
    pid, count, names, _ = (environ.pop(name, "") for name in _VARIABLES)
    if not pid or _parse("LISTEN_PID", pid) != os.getpid() or not count:
        return Activation()

    descriptors = range(_FIRST, _FIRST + _parse("LISTEN_FDS", count))
    for fd in descriptors:
        try:
            os.set_inheritable(fd, False)
        except OSError:
            raise StartError(f"LISTEN_FDS says {len(descriptors)}, but descriptor {fd} is not open") from None

    fd_names = names.split(":") if names else ["unknown"] * len(descriptors)  # as sd_listen_fds_with_names(3) does
    if len(fd_names) != len(descriptors):
        raise StartError(f"LISTEN_FDS says {len(descriptors)}, but LISTEN_FDNAMES has {len(fd_names)}: {names!r}")

    return Activation(dict(zip(descriptors, fd_names, strict=True)))


def _parse(variable: str, text: str) -> int:
    # At most the digits of a C int. A huge LISTEN_FDS fails at the first descriptor that is not open.
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) == 0:
        raise StartError(f"{variable} is {text!r}, not a number above 0: is this started by a service manager?")

    return int(text)
