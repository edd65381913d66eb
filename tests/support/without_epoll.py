"""Remove from a process what only Linux has: epoll, and names that macOS and FreeBSD do not define.

Imports nothing of anyecho, because it runs before anyecho is imported.
"""

from __future__ import annotations

__all__ = ("PRELUDE", "SYSTEMS", "prelude", "remove_epoll", "remove_names")

import select
import sys
from importlib import import_module
from types import ModuleType

#: Code for ``python -c`` that removes epoll, in any working directory.
PRELUDE = f"import runpy; runpy.run_path({__file__!r})['remove_epoll'](); "

_LINUX_ONLY = (
    *("AF_NETLINK", "AF_PACKET", "AF_VSOCK", "IPPROTO_MPTCP", "IP_BIND_ADDRESS_NO_PORT", "IP_TRANSPARENT"),
    *("MSG_CONFIRM", "MSG_ERRQUEUE", "MSG_FASTOPEN", "MSG_MORE", "SO_BINDTODEVICE", "SO_DOMAIN", "SO_INCOMING_CPU"),
    *("SO_MARK", "SO_PASSCRED", "SO_PASSSEC", "SO_PEERCRED", "SO_PEERSEC", "SO_PRIORITY", "TCP_CORK"),
    *("TCP_DEFER_ACCEPT", "TCP_LINGER2", "TCP_QUICKACK", "TCP_SYNCNT", "TCP_USER_TIMEOUT", "TCP_WINDOW_CLAMP"),
)
#: By system: the names that Python's `socket` module lacks there.
SYSTEMS = {
    "gevent": (),
    "macos": (*_LINUX_ONLY, "SOCK_CLOEXEC", "SOCK_NONBLOCK", "MSG_CMSG_CLOEXEC", "TCP_KEEPIDLE", "TCP_INFO"),
    "freebsd": (*_LINUX_ONLY, "IP_PKTINFO", "TCP_NOTSENT_LOWAT"),
}
#: The same for other modules; a name that this Linux lacks too is ignored.
_ELSEWHERE = {
    "errno": ("EBADFD", "ENONET", "EREMOTEIO", "ESTRPIPE"),
    "os": ("O_DIRECT", "O_NOATIME", "O_PATH", "O_TMPFILE", "eventfd", "memfd_create", "pidfd_open", "pipe2"),
    "signal": ("SIGPOLL", "SIGPWR", "SIGRTMAX", "SIGRTMIN", "SIGSTKFLT"),
}


def prelude(system: str) -> str:
    """Code for ``python -c`` that removes epoll and the names that `system` lacks."""
    return f"import runpy; runpy.run_path({__file__!r})['remove_names']({system!r}); "


def remove_names(system: str) -> None:
    """Remove from this process what `system` lacks. Only the standard library may be imported yet."""
    remove_epoll()
    for module, names in {"socket": SYSTEMS[system], **(_ELSEWHERE if SYSTEMS[system] else {})}.items():
        for name in names:
            vars(import_module(module)).pop(name, None)
    if SYSTEMS[system]:
        # A Python that was built without libffi has no ctypes.
        vars(sys)["modules"] |= {"ctypes": None, "_ctypes": None}


def remove_epoll() -> None:
    """Delete ``select.epoll`` and every ``EPOLL`` constant from this process. Idempotent.

    asyncio then uses poll(2); uvloop does not use the Python module. trio on Linux supports epoll only: it gets its
    own copy of the module.
    """
    names = [name for name in vars(select) if name.lower().startswith("epoll")]
    if not names:
        return

    kept = ModuleType("select")
    vars(kept).update(vars(select))
    for name in names:
        delattr(select, name)
    # asyncio may have chosen its selector already.
    selectors = vars(import_module("selectors"))
    selectors["DefaultSelector"] = selectors["PollSelector"]
    if sys.platform == "linux":
        import_module("trio")
        vars(import_module("trio._core._io_epoll"))["select"] = kept
