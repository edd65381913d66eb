"""``send`` over TLS: one line for a missing certificate, an invalid name or an unwritable key log."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from anyecho.net.tls.contexts import TLSServerOptions
from anyecho.server.options import ServeOptions
from anyecho.threaded import threaded_server
from tests.cli.conftest import Run
from tests.support.certificates import Files, files_in
from tests.support.process import Processes
from tests.support.tls import TLS, options


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server in a thread that requires client certificates of the suite's CA."""
    files = files_in(tmp_path_factory.mktemp("tls"))
    mutual = TLSServerOptions(
        ssl_certfile=files.cert, ssl_keyfile=files.key, ssl_ca_certs=files.cacert, ssl_cert_reqs="required"
    )
    with threaded_server(TLS, options=ServeOptions(tls=mutual)) as server:
        yield str(server.address)


@pytest.mark.parametrize("stdin", [b"", b"x\n" * 100_000], ids=["empty", "large"])
def test_a_missing_certificate_is_exit_3(
    stdin: bytes, processes: Processes, files: Files, backend: str, address: str
) -> None:
    command = ("send", address, "--cacert", str(files.cacert), "--backend", backend)
    status, echo, errors = processes.run(*command, stdin=stdin)
    assert (status, echo) == (3, b"")
    assert errors == f"anyecho: --cert is missing: {address} requires a client certificate\n"
    assert processes.run(*command, "--cert", str(files.client), stdin=stdin)[:2] == (0, stdin)


@pytest.mark.parametrize("name", ["x" * 64, ".".join(["x" * 60] * 5), "a b", ""])
def test_an_invalid_sni_is_exit_2(name: str, run: Run) -> None:
    status, _, errors = run("send", "tls://127.0.0.1:1", "--sni", name, "hello")
    assert (status, errors) == (2, f"anyecho: --sni is not a host name: {name!r}\n")


@pytest.mark.parametrize("bind", [TLS, "tcp://127.0.0.1:0"])
def test_a_host_may_end_with_a_dot(bind: str, run: Run, files: Files) -> None:
    trusted = ("--cacert", str(files.cacert)) if bind == TLS else ()
    given = options(files) if bind == TLS else ServeOptions()
    with threaded_server(bind, options=given) as server:
        assert run("send", f"{bind[:3]}://localhost.:{server.port}", *trusted, "hello")[:2] == (0, b"hello")


def test_an_unwritable_sslkeylogfile_is_exit_3(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SSLKEYLOGFILE", "/absent/keys")
    status, _, errors = processes.run("send", "tls://127.0.0.1:1", "hello")
    assert status == 3
    assert errors.startswith("anyecho: cannot write TLS keys to /absent/keys (set by SSLKEYLOGFILE): ")
