"""Streams that misbehave on purpose: faults for any anyio byte stream, and for the connections of a server.

Names are imported when first used: a server without faults loads none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyecho.faults.contents import Corrupt as Corrupt
    from anyecho.faults.contents import PacketLoss as PacketLoss
    from anyecho.faults.contents import Slicer as Slicer
    from anyecho.faults.datagrams import DatagramFault as DatagramFault
    from anyecho.faults.datagrams import Duplicate as Duplicate
    from anyecho.faults.datagrams import Loss as Loss
    from anyecho.faults.datagrams import Reorder as Reorder
    from anyecho.faults.datagrams import Truncate as Truncate
    from anyecho.faults.delays import Bandwidth as Bandwidth
    from anyecho.faults.delays import SlowClose as SlowClose
    from anyecho.faults.delays import Stall as Stall
    from anyecho.faults.ends import Cut as Cut
    from anyecho.faults.ends import HalfClose as HalfClose
    from anyecho.faults.ends import LimitData as LimitData
    from anyecho.faults.ends import ResetPeer as ResetPeer
    from anyecho.faults.ends import Timeout as Timeout
    from anyecho.faults.fault import ConnectionEnded as ConnectionEnded
    from anyecho.faults.fault import Fault as Fault
    from anyecho.faults.fault import StreamFault as StreamFault
    from anyecho.faults.latency import Latency as Latency
    from anyecho.faults.plan import spoil as spoil
    from anyecho.faults.spec import parse_fault as parse_fault
    from anyecho.faults.tls import ExpiredCertificate as ExpiredCertificate
    from anyecho.faults.tls import NoCloseNotify as NoCloseNotify
    from anyecho.faults.tls import SelfSignedCertificate as SelfSignedCertificate
    from anyecho.faults.tls import StalledHandshake as StalledHandshake
    from anyecho.faults.tls import TLSFault as TLSFault
    from anyecho.faults.tls import WrongNameCertificate as WrongNameCertificate

_MODULES = {
    "anyecho.faults.contents": "Corrupt PacketLoss Slicer",
    "anyecho.faults.datagrams": "DatagramFault Duplicate Loss Reorder Truncate",
    "anyecho.faults.delays": "Bandwidth SlowClose Stall",
    "anyecho.faults.ends": "Cut HalfClose LimitData ResetPeer Timeout",
    "anyecho.faults.fault": "ConnectionEnded Fault StreamFault",
    "anyecho.faults.latency": "Latency",
    "anyecho.faults.plan": "spoil",
    "anyecho.faults.spec": "parse_fault",
    "anyecho.faults.tls": (
        "ExpiredCertificate NoCloseNotify SelfSignedCertificate StalledHandshake TLSFault WrongNameCertificate"
    ),
}
_MODULE_OF = {name: home for home, names in _MODULES.items() for name in names.split()}

__all__ = (
    "Bandwidth",
    "ConnectionEnded",
    "Corrupt",
    "Cut",
    "DatagramFault",
    "Duplicate",
    "ExpiredCertificate",
    "Fault",
    "HalfClose",
    "Latency",
    "LimitData",
    "Loss",
    "NoCloseNotify",
    "PacketLoss",
    "Reorder",
    "ResetPeer",
    "SelfSignedCertificate",
    "Slicer",
    "SlowClose",
    "Stall",
    "StalledHandshake",
    "StreamFault",
    "TLSFault",
    "Timeout",
    "Truncate",
    "WrongNameCertificate",
    "parse_fault",
    "spoil",
)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'anyecho.faults' has no attribute {name!r}")

    from importlib import import_module

    value: object = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value
