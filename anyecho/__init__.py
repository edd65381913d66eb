"""The echo service for testing networks, clients and event loops: the same code on asyncio, uvloop and trio.

Names are imported when first used (PEP 562), so that ``import anyecho`` loads no backend, no command line and no
socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyecho._version import __version__ as __version__

# Not lazily: the first import of the submodule `anyecho.echo` would put the module in its place.
from anyecho.echo import echo as echo

if TYPE_CHECKING:
    from anyecho.address import Address as Address
    from anyecho.address import FDAddress as FDAddress
    from anyecho.address import TCPAddress as TCPAddress
    from anyecho.address import UDPAddress as UDPAddress
    from anyecho.address import UnixAddress as UnixAddress
    from anyecho.address import parse_address as parse_address
    from anyecho.backends import BACKENDS as BACKENDS
    from anyecho.backends import Backend as Backend
    from anyecho.backends import run as run
    from anyecho.client.client import Client as Client
    from anyecho.client.client import connect as connect
    from anyecho.client.options import ConnectOptions as ConnectOptions
    from anyecho.client.source import Source as Source
    from anyecho.control_thread import threaded_control as threaded_control
    from anyecho.errors import AddressError as AddressError
    from anyecho.errors import AnyechoError as AnyechoError
    from anyecho.errors import BackendError as BackendError
    from anyecho.errors import BindError as BindError
    from anyecho.errors import CertificateError as CertificateError
    from anyecho.errors import ConnectError as ConnectError
    from anyecho.errors import EchoError as EchoError
    from anyecho.errors import EchoLost as EchoLost
    from anyecho.errors import EchoMismatch as EchoMismatch
    from anyecho.errors import EchoStalled as EchoStalled
    from anyecho.errors import EchoTruncated as EchoTruncated
    from anyecho.errors import StartError as StartError
    from anyecho.errors import UnitError as UnitError
    from anyecho.errors import UsageError as UsageError
    from anyecho.net.sockets import SocketOptions as SocketOptions
    from anyecho.net.tls.contexts import TLSClientOptions as TLSClientOptions
    from anyecho.net.tls.contexts import TLSServerOptions as TLSServerOptions
    from anyecho.net.tls.generated import GeneratedAuthority as GeneratedAuthority
    from anyecho.server.admin import Admin as Admin
    from anyecho.server.admin import AdminSource as AdminSource
    from anyecho.server.admin import open_admin as open_admin
    from anyecho.server.control import Control as Control
    from anyecho.server.control import open_control as open_control
    from anyecho.server.forwarding import forward as forward
    from anyecho.server.monitor import Monitor as Monitor
    from anyecho.server.options import ServeOptions as ServeOptions
    from anyecho.server.recorder import ConnectionRecord as ConnectionRecord
    from anyecho.server.recorder import Recorder as Recorder
    from anyecho.server.server import Server as Server
    from anyecho.server.server import open_server as open_server
    from anyecho.server.server import serve as serve
    from anyecho.server.stats import Peer as Peer
    from anyecho.server.stats import Stats as Stats
    from anyecho.server.totals import Totals as Totals
    from anyecho.threaded import ServerFactory as ServerFactory
    from anyecho.threaded import ThreadedServer as ThreadedServer
    from anyecho.threaded import threaded_server as threaded_server

_MODULES = {
    "anyecho.address": "Address FDAddress TCPAddress UDPAddress UnixAddress parse_address",
    "anyecho.backends": "BACKENDS Backend run",
    "anyecho.errors": (
        "AddressError AnyechoError BackendError BindError CertificateError ConnectError EchoError EchoLost "
        "EchoMismatch EchoStalled EchoTruncated StartError UnitError UsageError"
    ),
    "anyecho.client.client": "Client connect",
    "anyecho.client.source": "Source",
    "anyecho.client.options": "ConnectOptions",
    "anyecho.net.sockets": "SocketOptions",
    "anyecho.net.tls.contexts": "TLSClientOptions TLSServerOptions",
    "anyecho.net.tls.generated": "GeneratedAuthority",
    "anyecho.server.admin": "Admin AdminSource open_admin",
    "anyecho.server.control": "Control open_control",
    "anyecho.server.forwarding": "forward",
    "anyecho.server.monitor": "Monitor",
    "anyecho.server.options": "ServeOptions",
    "anyecho.server.recorder": "ConnectionRecord Recorder",
    "anyecho.server.server": "Server open_server serve",
    "anyecho.server.stats": "Peer Stats",
    "anyecho.server.totals": "Totals",
    "anyecho.threaded": "ServerFactory ThreadedServer threaded_server",
    "anyecho.control_thread": "threaded_control",
}
_MODULE_OF = {name: home for home, names in _MODULES.items() for name in names.split()}

__all__ = tuple(sorted(["echo", *_MODULE_OF]))


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'anyecho' has no attribute {name!r}")

    from importlib import import_module  # lazily too: `import anyecho` stays cheap

    value: object = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
