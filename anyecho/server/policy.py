"""The policy of a listener."""

from __future__ import annotations

__all__ = ("ListenerPolicy",)

from typing import NamedTuple

from anyecho.faults.plan import FaultPlan
from anyecho.handlers import Handler
from anyecho.net.proxy.header import Versions
from anyecho.net.tls.contexts import Certificates


class ListenerPolicy(NamedTuple):
    """What a listener requires of its connections."""

    #: Accepted versions of the PROXY header; None: no header.
    versions: Versions | None = None
    #: The certificates to present over TLS; None: no TLS.
    certificates: Certificates | None = None
    #: The faults of its connections; None: no fault.
    faults: FaultPlan | None = None
    #: Its address, for the access log.
    listener: str = ""
    #: Serves its connections; None: the handler of the server.
    handler: Handler | None = None
