"""Socket activation: which descriptors a service manager has passed to this process, and what it calls them.

Knows the variables of sd_listen_fds(3) and nothing of sockets; what a descriptor is good for, `inherit` finds out.
"""

from __future__ import annotations

__all__ = ("Activation", "take_activation")

import os
import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

from anyecho.address import Address, FDAddress
from anyecho.errors import BindError, StartError

#: SD_LISTEN_FDS_START: the first after the standard streams.
_FIRST = 3
#: The last one is of systemd 258: who we are once more, which the pid has said.
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


@dataclass(frozen=True)
class Activation:
    """What was passed: the name of each descriptor. Several may have one name."""

    names: Mapping[int, str] = field(default_factory=dict)

    def resolve(self, addresses: Sequence[Address]) -> list[Address]:
        """`addresses`, with each name replaced by all descriptors that have it; of none, all that were passed.

        Raises `BindError` for a name that no descriptor has.
        """
        if not addresses:
            return [FDAddress(fd=fd) for fd in self.names]

        return [each for address in addresses for each in self._find(address)]

    def unused(self, addresses: Sequence[Address]) -> list[str]:
        """What was passed and is not among the resolved `addresses`, as a user would name it."""
        used = {address.fd for address in addresses if isinstance(address, FDAddress)}
        return [f"{FDAddress(fd=fd)} ({name})" for fd, name in self.names.items() if fd not in used]

    def _find(self, address: Address) -> list[Address]:
        if not isinstance(address, FDAddress) or isinstance(address.fd, int):
            return [address]
        if found := [replace(address, fd=fd) for fd, name in self.names.items() if name == address.fd]:
            return [*found]

        there = ", ".join(map(repr, dict.fromkeys(self.names.values())))
        reason = f"nothing of that name was passed, only {there}" if there else "no service manager passed anything"
        raise BindError(f"cannot listen on {address}: {reason}")


def take_activation(environ: MutableMapping[str, str]) -> Activation:
    """What `environ` says was passed to this process; nothing if that is meant for another, or not there.

    It is said once: the variables are removed, and the descriptors are closed in whatever is executed from here,
    so that no child takes them for its own. Call it before anything else opens a descriptor, which might get the
    number of one that is missing. Raises `StartError`.
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

    called = names.split(":") if names else ["unknown"] * len(descriptors)  # as sd_listen_fds_with_names(3) does
    if len(called) != len(descriptors):
        raise StartError(f"LISTEN_FDS says {len(descriptors)}, but LISTEN_FDNAMES has {len(called)}: {names!r}")

    return Activation(dict(zip(descriptors, called, strict=True)))


def _parse(variable: str, text: str) -> int:
    # As many as a C int has digits; of so many descriptors the first that is not open is soon found.
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) == 0:
        raise StartError(f"{variable} is {text!r}, not a number above 0: is this started by a service manager?")

    return int(text)
