"""TLS contexts from files: an error names the file in one line, and no password is prompted for."""

from __future__ import annotations

import errno
import os
import re
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import Mock

import pytest

from anyecho.address import TCPAddress
from anyecho.errors import CertificateError, UsageError
from anyecho.net.tls.contexts import Certificates, TLSClientOptions, TLSServerOptions, client_context
from anyecho.net.tls.generated import GeneratedAuthority, published
from tests.support.certificates import Files, files_in

HERE = [TCPAddress(host="127.0.0.1", port=0, tls=True)]


@pytest.fixture
def encrypted(files: Files) -> Path:
    """The key, encrypted with the password ``secret``."""
    path = files.key.with_name("encrypted.pem")
    command = ["openssl", "ec", "-in", str(files.key), "-aes128", "-passout", "pass:secret", "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"ssl_keyfile": "key.pem"}, "ssl_keyfile needs ssl_certfile"),
        ({"ssl_keyfile_password_file": "word"}, "ssl_keyfile_password_file needs ssl_certfile"),
        ({"ssl_self_signed": True, "ssl_certfile": "cert.pem"}, "exclude each other"),
        ({"authority": GeneratedAuthority()}, "authority needs ssl_self_signed"),
        ({"ssl_ca_certs": "ca.pem"}, "ssl_ca_certs needs ssl_cert_reqs"),
        ({"ssl_cert_reqs": "required"}, "ssl_cert_reqs required needs ssl_ca_certs"),
        ({"ssl_certfile": ""}, "ssl_certfile is empty"),
        ({"context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "ssl_self_signed": True}, "exclude each other"),
        ({"context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "ssl_alpn": ("x",)}, "exclude each other"),
        ({"context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}, "make it with ssl.PROTOCOL_TLS_SERVER"),
    ],
)
def test_contradictory_tls_options_are_refused(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        TLSServerOptions(**wrong)


def test_a_key_without_its_certificate_is_refused() -> None:
    with pytest.raises(UsageError, match="key needs cert"):
        TLSClientOptions(key=Path("key.pem"))


def served(files: Files, **options: Any) -> ssl.SSLContext:
    given: dict[str, Any] = {"ssl_certfile": files.cert, "ssl_keyfile": files.key} | options
    return Certificates(TLSServerOptions(**given), HERE).context


def test_the_minimum_is_tls_1_2_and_renegotiation_is_off(files: Files) -> None:
    for context in (served(files), client_context(TLSClientOptions())):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_NO_RENEGOTIATION


def test_servers_are_verified_unless_insecure() -> None:
    context = client_context(TLSClientOptions())
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    context = client_context(TLSClientOptions(insecure=True))
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)


@pytest.mark.parametrize(("reqs", "mode"), [("optional", ssl.CERT_OPTIONAL), ("required", ssl.CERT_REQUIRED)])
def test_clients_are_verified_as_ssl_cert_reqs_says(reqs: str, mode: ssl.VerifyMode, files: Files) -> None:
    assert served(files).verify_mode == ssl.CERT_NONE
    assert served(files, ssl_ca_certs=files.cacert, ssl_cert_reqs=reqs).verify_mode == mode


def test_a_key_is_decrypted_with_the_first_line_of_the_password_file(
    files: Files, encrypted: Path, tmp_path: Path
) -> None:
    word = tmp_path / "word"
    word.write_text("secret\nand more\n")
    served(files, ssl_keyfile=encrypted, ssl_keyfile_password_file=word)
    word.write_text("wrong")
    with pytest.raises(CertificateError, match=r"encrypted\.pem: the password in .*word is wrong"):
        served(files, ssl_keyfile=encrypted, ssl_keyfile_password_file=word)


def test_an_encrypted_key_without_a_password_file_is_an_error(files: Files, encrypted: Path) -> None:
    with pytest.raises(
        CertificateError, match=r"ssl_keyfile_password_file is missing: the key in .*encrypted\.pem is encrypted"
    ):
        served(files, ssl_keyfile=encrypted)


def test_an_encrypted_key_of_a_client_is_an_error(files: Files, encrypted: Path) -> None:
    reason = r"cannot use .*encrypted\.pem: the key is encrypted \(openssl pkey decrypts it\)$"
    with pytest.raises(CertificateError, match=reason):
        client_context(TLSClientOptions(cert=files.cert, key=encrypted))


def test_a_device_in_place_of_a_certificate_is_an_error_that_names_both_files(files: Files) -> None:
    with pytest.raises(CertificateError, match=rf"^cannot use /dev/null or {files.key}: .+"):
        served(files, ssl_certfile="/dev/null")


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_published_certificate_can_be_read_until_the_block_ends(
    in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    with published(b"data") as path:
        assert path.read_bytes() == b"data"
    assert not path.exists()


def test_a_forked_child_does_not_remove_the_published_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    with published(b"data") as path:
        monkeypatch.setattr(os, "getpid", lambda: 0)
    assert path.exists()
    path.unlink()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("ssl_certfile", None, "No such file or directory"),
        ("ssl_certfile", "garbage", "it holds no certificate in PEM format"),
        ("ssl_keyfile", None, "No such file or directory"),
        ("ssl_keyfile", "garbage", "it holds no private key in PEM format"),
        ("ssl_keyfile", "-----BEGIN PRIVATE KEY-----\nAAAA", "its private key is damaged"),
        ("ssl_keyfile_password_file", None, "No such file or directory"),
        ("ssl_ca_certs", None, "No such file or directory"),
        ("ssl_ca_certs", "garbage", "it holds no certificate in PEM format"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    name: str, content: str | None, why: str, files: Files, tmp_path: Path
) -> None:
    path = tmp_path / "this one"
    if content is not None:
        path.write_text(content)
    others = {"ssl_cert_reqs": "required"} if name == "ssl_ca_certs" else {}
    with pytest.raises(CertificateError, match=f"cannot use {tmp_path}/this one: {why}"):
        served(files, **{name: path}, **others)


def test_a_directory_in_place_of_a_certificate_is_an_error(files: Files, tmp_path: Path) -> None:
    for name in ("ssl_certfile", "ssl_keyfile"):
        with pytest.raises(CertificateError, match=f"cannot use {tmp_path}: Is a directory"):
            served(files, **{name: tmp_path})


@pytest.mark.parametrize("absent", ["ssl_certfile", "ssl_keyfile"])
def test_the_absent_one_of_two_files_is_named_whatever_the_other_holds(
    absent: str, files: Files, tmp_path: Path
) -> None:
    (tmp_path / "garbage").write_text("garbage")
    both = dict.fromkeys(("ssl_certfile", "ssl_keyfile"), tmp_path / "garbage")
    with pytest.raises(CertificateError, match=f"cannot use {tmp_path}/absent: No such file or directory"):
        served(files, **both | {absent: tmp_path / "absent"})


def test_a_certificate_file_without_a_key_asks_for_the_key(files: Files) -> None:
    with pytest.raises(
        CertificateError, match=r"ssl_keyfile is missing: .*cert\.pem holds no private key"
    ) as caught:
        served(files, ssl_keyfile=None)
    assert caught.value.options == ("ssl_keyfile",)
    with pytest.raises(CertificateError, match=r"^key is missing: .*cert\.pem holds no private key"):
        client_context(TLSClientOptions(cert=files.cert))


def test_file_options_accept_strings(files: Files) -> None:
    served(files, ssl_certfile=str(files.cert), ssl_keyfile=str(files.key))
    client_context(TLSClientOptions(cacert=str(files.cacert), cert=str(files.client)))


def test_a_pipe_that_holds_certificate_and_key_asks_for_the_key(files: Files) -> None:
    read_end, write_end = os.pipe()
    with open(read_end, "rb"), open(write_end, "wb") as pipe:
        pipe.write(files.cert.read_bytes() + files.key.read_bytes())
        pipe.close()
        with pytest.raises(CertificateError, match=r"^ssl_keyfile is missing: .* is a pipe") as caught:
            served(files, ssl_certfile=f"/dev/fd/{read_end}", ssl_keyfile=None)

    assert caught.value.options == ("ssl_keyfile",)


def test_a_pipe_is_read_once_and_can_hold_the_key(files: Files) -> None:
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, files.key.read_bytes())
        os.close(write_end)
        served(files, ssl_keyfile=f"/dev/fd/{read_end}")
    finally:
        os.close(read_end)


def test_a_fifo_that_was_read_does_not_block_the_error_of_the_key(files: Files, tmp_path: Path) -> None:
    os.mkfifo(fifo := tmp_path / "fifo")
    writer = Thread(target=fifo.write_bytes, args=(files.cert.read_bytes(),), daemon=True)
    writer.start()
    with pytest.raises(CertificateError, match=f"^cannot use {tmp_path}/absent: No such file or directory$"):
        served(files, ssl_certfile=fifo, ssl_keyfile=tmp_path / "absent")
    writer.join()


def test_a_fifo_without_a_writer_does_not_block_the_error_of_the_certificate(files: Files, tmp_path: Path) -> None:
    os.mkfifo(fifo := tmp_path / "fifo")
    (garbage := tmp_path / "garbage").touch()
    with pytest.raises(CertificateError, match=f"^cannot use {garbage} or {fifo}: "):
        served(files, ssl_certfile=garbage, ssl_keyfile=fifo)


def test_a_key_of_another_certificate_is_an_error(files: Files, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = files_in(tmp_path / "other")
    with pytest.raises(CertificateError, match=r"other/key\.pem: it is not the key of .*/cert\.pem"):
        served(files, ssl_keyfile=other.key)


def test_a_context_of_the_caller_is_used_as_it_is_and_never_renegotiates() -> None:
    mine = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificates = Certificates(TLSServerOptions(context=mine), HERE)
    certificates.reload()
    assert certificates.context is mine
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert client_context(TLSClientOptions(context=theirs, sni="example.org")) is theirs
    assert mine.options & theirs.options & ssl.OP_NO_RENEGOTIATION


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.MINIMUM_SUPPORTED])
def test_a_context_that_allows_versions_older_than_tls_1_2_is_refused(version: ssl.TLSVersion) -> None:
    for protocol, options in (
        (ssl.PROTOCOL_TLS_SERVER, TLSServerOptions),
        (ssl.PROTOCOL_TLS_CLIENT, TLSClientOptions),
    ):
        context = ssl.SSLContext(protocol)
        context.minimum_version = version
        with pytest.raises(UsageError, match="context allows versions older than TLS 1"):
            options(context=context)


@pytest.mark.parametrize("other", [{"cacert": "ca.pem"}, {"insecure": True}, {"alpn": ("x",)}, {"cert": "me.pem"}])
def test_a_client_context_excludes_other_options(other: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"context and {next(iter(other))} exclude each other"):
        TLSClientOptions(context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), **other)


def test_a_client_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    for options in (TLSClientOptions(cacert=tmp_path / "absent"), TLSClientOptions(cert=tmp_path / "absent")):
        with pytest.raises(CertificateError, match=r"cannot use .*absent: No such file"):
            client_context(options)


@pytest.mark.parametrize("protocol", ["", "x" * 256, "é"])
def test_an_invalid_alpn_protocol_is_refused(protocol: str) -> None:
    with pytest.raises(UsageError, match="no ALPN protocols"):
        client_context(TLSClientOptions(alpn=(protocol,)))


def test_the_error_without_trustme_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(CertificateError, match=r"pip install 'anyecho\[trustme\]'"):
        Certificates(TLSServerOptions(ssl_self_signed=True), HERE)


def test_a_self_signed_certificate_is_valid_for_the_hosts_of_the_listeners() -> None:
    addresses = [TCPAddress(host=host, port=0, tls=True) for host in ("::1", "fe80::1%eth0", "example.org", "")]
    certificates = Certificates(TLSServerOptions(ssl_self_signed=True), addresses)
    try:
        assert certificates.cacert is not None
        client_context(TLSClientOptions(cacert=certificates.cacert))
    finally:
        for _ in range(2):
            certificates.close()
    assert not certificates.cacert.exists()


def test_servers_with_one_generated_ca_give_it_to_clients(tmp_path: Path) -> None:
    authority = GeneratedAuthority()
    authority.save(tmp_path / "ca.pem")
    assert authority.cacert is not None
    for _ in range(2):
        certificates = Certificates(TLSServerOptions(ssl_self_signed=True, authority=authority), HERE)
        try:
            assert certificates.cacert is not None
            assert certificates.cacert.read_bytes() == authority.cacert.read_bytes()
        finally:
            certificates.close()


@pytest.mark.parametrize("host", ["my_host", "localhost..", "x" * 64])
def test_a_host_name_that_no_certificate_can_have_is_an_error_of_one_line(host: str) -> None:
    with pytest.raises(CertificateError, match="cannot generate a certificate for .*" + re.escape(host)) as caught:
        Certificates(TLSServerOptions(ssl_self_signed=True), [TCPAddress(host=host, port=0, tls=True)])
    assert "\n" not in str(caught.value)


def test_a_generated_ca_that_cannot_be_written_is_an_error_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("trustme.Blob.bytes", Mock(side_effect=full))
    with pytest.raises(CertificateError, match="No space left on device"):
        Certificates(TLSServerOptions(ssl_self_signed=True), [TCPAddress(host="localhost", port=0, tls=True)])
    assert not list(tmp_path.iterdir())
