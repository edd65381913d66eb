"""Code for ``before=`` of `Processes.start`: the restrictions of a systemd unit, without systemd.

A server under it is killed by a system call that the unit does not allow.
"""

from __future__ import annotations

__all__ = ("allowed_calls", "sandbox")

import socket
import subprocess

from tests.deploy.commands import Unit

#: SCMP_ACT_KILL_PROCESS, SCMP_ACT_ALLOW and SCMP_CMP_EQ of libseccomp; PR_SET_MDWE of prctl(2), Linux 6.3.
_ENTER = """
import ctypes, os

class Equal(ctypes.Structure):
    _fields_ = [("argument", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]

def enter():
    seccomp, libc = ctypes.CDLL("libseccomp.so.2"), ctypes.CDLL(None, use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    filter = ctypes.c_void_p(seccomp.seccomp_init(0x80000000))

    def allow(name, *arguments):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # this architecture has it
            array = (Equal * len(arguments))(*arguments)
            code = seccomp.seccomp_rule_add_array(filter, 0x7FFF0000, number, len(arguments), array)
            assert code == 0, (name, code)

    for name in {calls}:
        allow(name)
    for family in {families}:
        allow("socket", Equal(0, 4, family, 0))
    if {no_new_code}:
        assert libc.prctl(65, 1, 0, 0, 0) == 0, ctypes.get_errno()
    assert seccomp.seccomp_load(filter) == 0

# A worker starts as its supervisor did, and is restricted already.
if os.environ.setdefault("RESTRICTED", "no") == "no":
    os.environ["RESTRICTED"] = "yes"
    enter()
"""


def sandbox(unit: Unit) -> str:
    """Return code that applies system calls, address families and memory protection of `unit` to its process."""
    families = [int(getattr(socket, name)) for name in unit["RestrictAddressFamilies"][0].split()]
    return _ENTER.format(
        calls=sorted(allowed_calls(unit) - {"socket"}),
        families=families,
        no_new_code=unit["MemoryDenyWriteExecute"] == ["yes"],
    )


def allowed_calls(unit: Unit) -> set[str]:
    """Return the system calls that the filter of `unit` allows."""
    allowed: set[str] = set()
    for line in unit["SystemCallFilter"]:
        named = {call for word in line.removeprefix("~").split() for call in _expanded(word)}
        allowed = allowed - named if line.startswith("~") else allowed | named

    return allowed


def _expanded(word: str) -> set[str]:
    """Return the system calls of a group like ``@system-service``."""
    if not word.startswith("@"):
        return {word}

    command = ["systemd-analyze", "--no-pager", "syscall-filter", word]
    text = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    words = [line.strip() for line in text.splitlines()[1:]]
    return {call for each in words if each and not each.startswith("#") for call in _expanded(each)}
